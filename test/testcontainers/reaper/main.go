// Command reaper stands in for ryuk, the reaper of testcontainers, because its image comes from Docker Hub only. It speaks the same protocol. A test keeps a connection open and writes filters, one line of name=value pairs with & between them, each of which is answered with ACK. When no
// connection has been open for RYUK_RECONNECTION_TIMEOUT, reaper removes what the filters select, and ends.
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/moby/moby/client"
)

func main() {
	if err := run(); err != nil {
		log.Fatal(err)
	}
}

func run() error {
	patience := 10 * time.Second
	if text := os.Getenv("RYUK_RECONNECTION_TIMEOUT"); text != "" {
		var err error
		if patience, err = time.ParseDuration(text); err != nil {
			return fmt.Errorf("RYUK_RECONNECTION_TIMEOUT: %w", err)
		}
	}
	engine, err := client.New(client.FromEnv)
	if err != nil {
		return err
	}
	if _, err := engine.Ping(context.Background(), client.PingOptions{}); err != nil {
		return err
	}
	l, err := net.Listen("tcp", ":8080")
	if err != nil {
		return err
	}
	log.Print("Started")
	filters := collect(l, patience)
	for _, f := range filters {
		err = errors.Join(err, remove(engine, f))
	}
	return err
}

// collect returns the filters of all connections when the last one has been closed for so long. The first may take a minute.
func collect(l net.Listener, patience time.Duration) (filters []client.Filters) {
	var mu sync.Mutex
	open := 0
	over := make(chan struct{})
	end := time.AfterFunc(time.Minute, func() { close(over) })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				lines := bufio.NewScanner(conn)
				if !lines.Scan() {
					return // it looked whether the port answers
				}
				mu.Lock()
				open++
				end.Stop()
				mu.Unlock()
				for more := true; more; more = lines.Scan() {
					f := client.Filters{}
					for pair := range strings.SplitSeq(lines.Text(), "&") {
						name, value, _ := strings.Cut(pair, "=")
						f = f.Add(name, value)
					}
					mu.Lock()
					filters = append(filters, f)
					mu.Unlock()
					if _, err := conn.Write([]byte("ACK\n")); err != nil {
						break
					}
				}
				mu.Lock()
				defer mu.Unlock()
				if open--; open == 0 {
					end.Reset(patience)
				}
			}()
		}
	}()
	<-over
	mu.Lock()
	defer mu.Unlock()
	_ = l.Close() // the program ends
	return filters
}

// remove removes the containers, networks and volumes that a filter selects.
func remove(engine *client.Client, f client.Filters) (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	containers, listError := engine.ContainerList(ctx, client.ContainerListOptions{All: true, Filters: f})
	err = errors.Join(err, listError)
	for _, c := range containers.Items {
		_, failed := engine.ContainerRemove(ctx, c.ID, client.ContainerRemoveOptions{Force: true, RemoveVolumes: true})
		err = errors.Join(err, failed)
	}
	networks, listError := engine.NetworkList(ctx, client.NetworkListOptions{Filters: f})
	err = errors.Join(err, listError)
	for _, n := range networks.Items {
		_, failed := engine.NetworkRemove(ctx, n.ID, client.NetworkRemoveOptions{})
		err = errors.Join(err, failed)
	}
	volumes, listError := engine.VolumeList(ctx, client.VolumeListOptions{Filters: f})
	err = errors.Join(err, listError)
	for _, v := range volumes.Items {
		_, failed := engine.VolumeRemove(ctx, v.Name, client.VolumeRemoveOptions{Force: true})
		err = errors.Join(err, failed)
	}
	log.Printf("removed %d containers, %d networks, %d volumes", len(containers.Items), len(networks.Items), len(volumes.Items))
	return err
}
