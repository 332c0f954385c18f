package e2e

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"

	"github.com/rogpeppe/go-internal/testscript"

	"ply/internal/registry/blobs/s3/s3test"
	"ply/internal/registry/metadata/postgres/postgrestest"
)

// replicas VAR [FLAG]... starts two ply-registries on one PostgreSQL and one bucket of S3, and before them a load balancer that sends each request to the one
// that did not get the last. Its address becomes $VAR, that of the database ${VAR}_DATABASE, and of the replicas ${VAR}_1 and ${VAR}_2.
func cmdReplicas(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 {
		ts.Fatalf("usage: replicas VAR [FLAG]...")
	}
	w := worldOf(ts)
	database, err := postgrestest.Start()
	ts.Check(err)
	ts.Defer(func() { ts.Check(database.Stop()) })
	storage, err := s3test.Start()
	ts.Check(err)
	ts.Defer(func() { ts.Check(storage.Stop()) })
	db, bucket := database.Database(w.t), storage.Bucket(w.t)
	ts.Setenv(args[0]+"_DATABASE", db)
	var addresses []string
	for _, n := range []string{"1", "2"} {
		name := args[0] + "_" + n
		c := exec.Command(filepath.Join(bin, "ply-registry"), append([]string{"--addr=127.0.0.1:0", "--root=" + filepath.Join(w.dir, "ply-registry-"+name), "--database=" + db,
			"--s3-endpoint=" + bucket.Endpoint, "--s3-bucket=" + bucket.Bucket, "--s3-region=" + bucket.Region, "--s3-path-style",
			"--s3-access-key=" + bucket.AccessKey, "--s3-secret-key=" + bucket.SecretKey}, args[1:]...)...)
		out, err := c.StdoutPipe()
		ts.Check(err)
		log := &bytes.Buffer{}
		c.Stderr = log
		ts.Check(c.Start())
		w.regs = append(w.regs, c)
		w.regNames[name] = c
		line, err := bufio.NewReader(out).ReadString('\n')
		if err != nil {
			_ = c.Wait()
			ts.Fatalf("ply-registry: %v\n%s", err, log)
		}
		go func() { _, _ = io.Copy(io.Discard, out) }()
		addresses = append(addresses, strings.TrimSpace(line[strings.LastIndex(line, " ")+1:]))
		ts.Setenv(name, addresses[len(addresses)-1])
	}
	var requests atomic.Int64
	balancer := httptest.NewServer(&httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(&url.URL{Scheme: "http", Host: addresses[requests.Add(1)%int64(len(addresses))]})
			r.Out.Host = r.In.Host
		},
		Transport:    &http.Transport{DisableCompression: true, DisableKeepAlives: true},
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) },
	})
	ts.Defer(balancer.Close)
	ts.Setenv(args[0], strings.TrimPrefix(balancer.URL, "http://"))
}
