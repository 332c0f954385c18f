package context

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"ply/internal/cli/client"
	"ply/internal/cli/command"
	"ply/internal/cli/contexts"
	"ply/internal/errs"
)

// Create returns the command context create.
func Create(inv *command.Invocation) *cobra.Command {
	var description, from string
	var docker map[string]string
	c := &cobra.Command{
		Use: "create [OPTIONS] CONTEXT", Short: "Create a context", Args: command.ExactArgs(1),
		Long: "Create a context\n\nKeys of --docker:\n\n" + endpointHelp,
		RunE: func(cmd *cobra.Command, args []string) error {
			name, store := args[0], inv.Contexts()
			if err := contexts.CheckName(name); err != nil {
				return err
			}
			if _, err := store.Get(name); err == nil {
				return errs.New(errs.Conflict, "context %q already exists", name)
			}
			c := &contexts.Context{}
			switch {
			case from != "":
				if len(docker) > 0 {
					return errs.New(errs.Invalid, "cannot use --docker flag when --from is set")
				}
				base, err := get(inv, from)
				if err != nil {
					return err
				}
				c = base
			case len(docker) == 0:
				return errs.New(errs.Invalid, "docker endpoint configuration is required")
			default:
				if err := setEndpoint(inv, c, docker); err != nil {
					return err
				}
			}
			c.Name = name
			if cmd.Flags().Changed("description") {
				c.Description = description
			}
			if err := store.Put(c); err != nil {
				return err
			}
			return done(inv, name, "Successfully created context %q")
		},
	}
	fs := c.Flags()
	fs.StringVar(&description, "description", "", "Description of the context")
	fs.StringToStringVar(&docker, "docker", nil, "Set the docker endpoint")
	fs.StringVar(&from, "from", "", "Create context from a named context")
	return c
}

// done prints the name of a context, and what was done to it for people.
func done(inv *command.Invocation, name, text string) error {
	if _, err := fmt.Fprintln(inv.Out, name); err != nil {
		return err
	}
	fmt.Fprintf(inv.Err, text+"\n", name)
	return nil
}

// endpointHelp lists the keys of --docker.
const endpointHelp = `  from              copy the endpoint of a context
  host              address of the engine: unix://, tcp:// or ssh://
  ca                file of the certificates to trust
  cert              file of the client's certificate
  key               file of the client's key
  skip-tls-verify   do not verify the certificate of the engine`

// setEndpoint sets the endpoint of a context as --docker says.
func setEndpoint(inv *command.Invocation, c *contexts.Context, docker map[string]string) error {
	next := contexts.Context{TLS: map[string][]byte{}}
	for key := range docker {
		switch key {
		case "from", "host", "ca", "cert", "key", "skip-tls-verify":
		default:
			return errs.New(errs.Invalid, "unrecognized config key: %s", key).WithHint("The keys of --docker are from, host, ca, cert, key and skip-tls-verify.")
		}
	}
	if from := docker["from"]; from != "" {
		if len(docker) > 1 {
			return errs.New(errs.Invalid, "cannot use other keys of --docker together with from")
		}
		base, err := get(inv, from)
		if err != nil {
			return err
		}
		c.Endpoint, c.TLS = base.Endpoint, base.TLS
		return nil
	}
	next.Endpoint.Host = docker["host"]
	if next.Endpoint.Host != "" {
		if _, _, err := client.SplitHost(next.Endpoint.Host); err != nil {
			return err
		}
	}
	if text, ok := docker["skip-tls-verify"]; ok {
		skip, err := strconv.ParseBool(text)
		if err != nil {
			return errs.New(errs.Invalid, "skip-tls-verify: %q is neither true nor false", text)
		}
		next.Endpoint.SkipTLSVerify = skip
	}
	for key, name := range map[string]string{"ca": contexts.CA, "cert": contexts.Cert, "key": contexts.Key} {
		if docker[key] == "" {
			continue
		}
		b, err := os.ReadFile(docker[key])
		if err != nil {
			return errs.New(errs.Invalid, "%s: %w", key, err)
		}
		next.TLS[name] = b
	}
	if (next.TLS[contexts.Cert] == nil) != (next.TLS[contexts.Key] == nil) {
		return errs.New(errs.Invalid, "invalid docker endpoint options: cert and key belong together")
	}
	c.Endpoint, c.TLS = next.Endpoint, next.TLS
	return nil
}

// get returns a context; the context default is made of the flags and the environment.
func get(inv *command.Invocation, name string) (*contexts.Context, error) {
	if name != contexts.Default {
		return inv.Contexts().Get(name)
	}
	host, err := inv.DefaultHost()
	if err != nil {
		return nil, err
	}
	return &contexts.Context{Name: name, Endpoint: contexts.Endpoint{Host: host}}, nil
}

// trim returns one line of a description for a table.
func trim(s string) string { return strings.ReplaceAll(s, "\n", " ") }
