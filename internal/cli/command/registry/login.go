package registry

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"ply/internal/cli/client"
	"ply/internal/cli/command"
	"ply/internal/cli/config"
	"ply/internal/errs"
	"ply/internal/wire"
)

// unencrypted is the warning about a password in config.json.
const unencrypted = `
WARNING! Your credentials are stored unencrypted in '%s'.
Configure a credential helper to remove this warning: set "credsStore" in that file
`

// Login returns the command login.
func Login(inv *command.Invocation) *cobra.Command {
	var user, pass string
	var fromStdin bool
	c := &cobra.Command{
		Use: "login [OPTIONS] [SERVER]", Short: "Authenticate to a registry", Args: command.MaxArgs(1),
		Long: "Authenticate to a registry.\nDefaults to Docker Hub if no server is specified.",
		RunE: func(cmd *cobra.Command, args []string) error {
			server := config.Hub
			if len(args) > 0 {
				server = config.Key(serverName(args[0]))
			}
			c, err := credentials(cmd, inv, server, user, pass, fromStdin)
			if err != nil {
				return err
			}
			return login(cmd.Context(), inv, c)
		},
	}
	c.Flags().StringVarP(&user, "username", "u", "", "Username")
	c.Flags().StringVarP(&pass, "password", "p", "", "Password or Personal Access Token (PAT)")
	c.Flags().BoolVar(&fromStdin, "password-stdin", false, "Take the Password or Personal Access Token (PAT) from stdin")
	return c
}

// serverName removes the scheme and the final slash that users paste with the name of a registry. The engine judges any other path.
func serverName(s string) string {
	if s == config.Hub {
		return s
	}
	s = strings.TrimPrefix(strings.TrimPrefix(s, "https://"), "http://")
	return strings.TrimSuffix(s, "/")
}

// credentials takes name and password from the flags of cmd, from the input, from what is stored, or from the terminal.
func credentials(cmd *cobra.Command, inv *command.Invocation, server, user, pass string, fromStdin bool) (config.Credentials, error) {
	c := config.Credentials{Server: server, Username: user, Password: pass}
	switch {
	case cmd.Flags().Changed("password") && fromStdin:
		return c, errs.New(errs.Invalid, "conflicting options: cannot specify both --password and --password-stdin")
	case cmd.Flags().Changed("password"):
		fmt.Fprintln(inv.Err, "WARNING! Using --password via the CLI is insecure. Use --password-stdin.")
	case fromStdin:
		if user == "" {
			return c, errs.New(errs.Invalid, "the --password-stdin option requires --username to be set")
		}
		b, err := io.ReadAll(io.LimitReader(inv.Input(cmd.Context()), 64<<10))
		if err != nil {
			return c, command.EndOf(cmd.Context(), err)
		}
		c.Password = strings.TrimRight(string(b), "\r\n")
		if c.Password == "" {
			return c, errs.New(errs.Invalid, "password is empty")
		}
	}
	if user == "" && pass == "" {
		stored, err := inv.Config().Get(cmd.Context(), server)
		if err != nil {
			fmt.Fprintf(inv.Err, "WARNING: %v\n", err)
		}
		if !stored.Empty() && (stored.Password != "" || stored.IdentityToken != "") {
			fmt.Fprintf(inv.Out, "Authenticating with existing credentials... [Username: %s]\n\ni Info → To login with a different account, run 'ply logout' followed by 'ply login'\n\n\n", stored.Username)
			return stored, nil
		}
	}
	if c.Username != "" && c.Password != "" {
		return c, nil
	}
	if inv.InTerm == nil {
		return c, errs.New(errs.Invalid, "Error: Cannot perform an interactive login from a non TTY device")
	}
	return c, promptCredentials(cmd.Context(), inv, &c)
}

// promptCredentials asks on the terminal for what c does not have.
func promptCredentials(ctx context.Context, inv *command.Invocation, c *config.Credentials) error {
	if c.Username == "" {
		fmt.Fprint(inv.Out, "Username: ")
		line, err := readLine(ctx, inv.In)
		if err != nil {
			return err
		}
		if c.Username = strings.TrimSpace(line); c.Username == "" {
			return errs.New(errs.Invalid, "Error: Non-null Username Required")
		}
	}
	fmt.Fprint(inv.Out, "Password: ")
	type answer struct {
		s   string
		err error
	}
	ch := make(chan answer, 1)
	go func() {
		s, err := inv.InTerm.ReadPassword()
		ch <- answer{s, err}
	}()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case l := <-ch:
		fmt.Fprintln(inv.Out)
		if l.err != nil {
			return l.err
		}
		if c.Password = l.s; c.Password == "" {
			return errs.New(errs.Invalid, "Error: Password Required")
		}
	}
	return nil
}

// readLine reads a line, until ctx ends.
func readLine(ctx context.Context, r io.Reader) (string, error) {
	type answer struct {
		s   string
		err error
	}
	ch := make(chan answer, 1)
	go func() {
		s, err := bufio.NewReaderSize(r, 16).ReadString('\n')
		if errors.Is(err, io.EOF) && s != "" {
			err = nil
		}
		ch <- answer{strings.TrimRight(s, "\r\n"), err}
	}()
	select {
	case <-ctx.Done():
		return "", context.Cause(ctx)
	case l := <-ch:
		return l.s, l.err
	}
}

// login checks credentials with the engine and stores them.
func login(ctx context.Context, inv *command.Invocation, c config.Credentials) error {
	api, err := inv.Engine(ctx)
	if err != nil {
		return err
	}
	body := wire.Auth{Username: c.Username, Password: c.Password, ServerAddress: c.Server, IdentityToken: c.IdentityToken}
	var out wire.LoginResult
	if err := api.Do(ctx, client.Request{Method: "POST", Path: "/auth", Body: body}, &out); err != nil {
		return err
	}
	if out.IdentityToken != "" {
		c.Password, c.IdentityToken = "", out.IdentityToken
	}
	plain, err := inv.Config().Store(ctx, c)
	if err != nil {
		return fmt.Errorf("error saving credentials: %w", err)
	}
	if plain {
		fmt.Fprintf(inv.Err, unencrypted, inv.Config().Path)
	}
	if out.Status != "" {
		fmt.Fprintln(inv.Out, "\n"+out.Status)
	}
	return nil
}
