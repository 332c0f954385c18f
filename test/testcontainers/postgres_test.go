package testcontainers

import (
	"context"
	"database/sql"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib"
	mobynetwork "github.com/moby/moby/api/types/network"
	"github.com/testcontainers/testcontainers-go"
	"github.com/testcontainers/testcontainers-go/exec"
	"github.com/testcontainers/testcontainers-go/network"
	"github.com/testcontainers/testcontainers-go/wait"
)

const (
	image    = "postgres:15"
	port     = "5432/tcp"
	password = "of-the-test"
	ready    = "database system is ready to accept connections"
)

func address(host, port string) string {
	return fmt.Sprintf("postgres://postgres:%s@%s/postgres?sslmode=disable", password, net.JoinHostPort(host, port))
}

// start starts PostgreSQL in a network of its own, and returns when it answers.
func start(t *testing.T) (*testcontainers.DockerContainer, *testcontainers.DockerNetwork) {
	t.Helper()
	own, err := network.New(t.Context())
	testcontainers.CleanupNetwork(t, own)
	if err != nil {
		t.Fatal(err)
	}
	c, err := testcontainers.Run(t.Context(), image,
		testcontainers.WithExposedPorts(port),
		testcontainers.WithEnv(map[string]string{"POSTGRES_PASSWORD": password}),
		testcontainers.WithFiles(testcontainers.ContainerFile{Reader: strings.NewReader("CREATE TABLE words (word text);"), ContainerFilePath: "/tmp/init.sql", FileMode: 0o644}),
		network.WithNetwork([]string{"db"}, own),
		testcontainers.WithWaitStrategyAndDeadline(2*time.Minute,
			wait.ForLog(ready),
			wait.ForListeningPort(port),
			wait.ForSQL(port, "pgx", func(host string, p mobynetwork.Port) string { return address(host, p.Port()) })))
	testcontainers.CleanupContainer(t, c)
	if err != nil {
		t.Fatal(err)
	}
	return c, own
}

// PostgreSQL is reached by its port on this machine, by exec, and by its alias from another container.
func TestPostgres(t *testing.T) {
	c, own := start(t)
	ctx := t.Context()
	host, err := c.Host(ctx)
	if err != nil {
		t.Fatal(err)
	}
	mapped, err := c.MappedPort(ctx, port)
	if err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open("pgx", address(host, mapped.Port()))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.ExecContext(ctx, "INSERT INTO words VALUES ('kept')"); err != nil { // into the table of the file that was copied
		t.Fatal(err)
	}
	if out := say(t, c, "psql", "-h", "127.0.0.1", "-At", "-c", "SELECT word FROM words"); out != "kept\n" {
		t.Errorf("exec says %q", out)
	}
	asks, err := testcontainers.Run(ctx, image, testcontainers.WithCmd("sh", "-c", "trap exit INT; sleep 1000 & wait"), network.WithNetwork(nil, own))
	testcontainers.CleanupContainer(t, asks)
	if err != nil {
		t.Fatal(err)
	}
	if out := say(t, asks, "psql", address("db", "5432"), "-At", "-c", "SELECT word FROM words"); out != "kept\n" {
		t.Errorf("the neighbour says %q", out)
	}
	logs, err := c.Logs(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer logs.Close()
	if b, err := io.ReadAll(logs); err != nil || !strings.Contains(string(b), ready) {
		t.Errorf("%d bytes of logs, %v", len(b), err)
	}
	stop := 10 * time.Second
	if err := c.Stop(ctx, &stop); err != nil {
		t.Fatal(err)
	}
	if st, err := c.State(ctx); err != nil || st.Running || st.ExitCode != 0 {
		t.Errorf("stopped: %+v, %v", st, err)
	}
	if err := c.Start(ctx); err != nil { // it waits again
		t.Fatal(err)
	}
	if mapped, err = c.MappedPort(ctx, port); err != nil {
		t.Fatal(err)
	}
	again, err := sql.Open("pgx", address(host, mapped.Port()))
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	var word string
	if err := again.QueryRowContext(ctx, "SELECT word FROM words").Scan(&word); err != nil || word != "kept" {
		t.Errorf("after a restart: %q, %v", word, err)
	}
}

// say runs a command in a container, which must succeed, and returns what it prints.
func say(t *testing.T, c *testcontainers.DockerContainer, cmd ...string) string {
	t.Helper()
	code, r, err := c.Exec(t.Context(), append([]string{"env", "PGUSER=postgres", "PGPASSWORD=" + password}, cmd...), exec.Multiplexed())
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(r)
	if err != nil || code != 0 {
		t.Fatalf("%q: exit code %d, %v: %s", cmd, code, err, b)
	}
	return string(b)
}

// TestKilled is killed while its containers and its network exist: the reaper removes them.
func TestKilled(t *testing.T) {
	start(t)
	fmt.Println("killed now")
	if err := syscall.Kill(syscall.Getpid(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-context.Background().Done()
}
