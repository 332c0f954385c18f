package container

import (
	"errors"
	"fmt"
	"net/url"

	"github.com/spf13/cobra"

	"ply/internal/cli/client"
	"ply/internal/cli/command"
)

// postEach returns the RunE of a command that posts verb to every container that it names, and prints the names. query, which may
// be nil, returns the parameters.
func postEach(inv *command.Invocation, verb string, query func(cmd *cobra.Command) (url.Values, error)) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		ctx := cmd.Context()
		api, err := inv.Engine(ctx)
		if err != nil {
			return err
		}
		return concurrently(inv, args, func(id string) error {
			var q url.Values
			if query != nil {
				var err error
				if q, err = query(cmd); err != nil {
					return err
				}
			}
			return api.Do(ctx, client.Request{Method: "POST", Path: "/containers/" + id + "/" + verb, Query: q}, nil)
		})
	}
}

// maxParallel bounds the requests that concurrently has under way.
const maxParallel = 50

// errQuiet is returned for a container whose name must not be printed, though nothing failed.
var errQuiet = errors.New("nothing to print")

// concurrently calls f for every name, several at a time. It prints the names for which f succeeded and collects the errors, both
// in the order of args.
func concurrently(inv *command.Invocation, args []string, f func(string) error) error {
	results := make([]chan error, len(args))
	slots := make(chan struct{}, maxParallel)
	for i, arg := range args {
		results[i] = make(chan error, 1)
		go func() {
			slots <- struct{}{}
			results[i] <- f(arg)
			<-slots
		}()
	}
	var list command.Errors
	for i, ch := range results {
		err := <-ch
		if errors.Is(err, errQuiet) {
			continue
		}
		if err != nil {
			list = append(list, err)
			continue
		}
		fmt.Fprintln(inv.Out, args[i])
	}
	if len(list) > 0 {
		return list
	}
	return nil
}
