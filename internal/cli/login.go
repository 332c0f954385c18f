package cli

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"ply/internal/cli/client"
	"ply/internal/cli/config"
	"ply/internal/cli/format"
	"ply/internal/cli/opts"
	"ply/internal/errs"
	"ply/internal/wire"
)

// unencrypted is the warning about a password in config.json.
const unencrypted = `
WARNING! Your credentials are stored unencrypted in '%s'.
Configure a credential helper to remove this warning: set "credsStore" in that file
`

func (a *App) cmdLogin() *cobra.Command {
	var user, pass string
	var fromStdin bool
	c := &cobra.Command{
		Use: "login [OPTIONS] [SERVER]", Short: "Authenticate to a registry", Args: maxArgs(1),
		Long: "Authenticate to a registry.\nDefaults to Docker Hub if no server is specified.",
		RunE: func(cmd *cobra.Command, args []string) error {
			server := config.Hub
			if len(args) > 0 {
				server = config.Key(serverName(args[0]))
			}
			c, err := a.credentials(cmd, server, user, pass, fromStdin)
			if err != nil {
				return err
			}
			return a.login(cmd.Context(), c)
		},
	}
	c.Flags().StringVarP(&user, "username", "u", "", "Username")
	c.Flags().StringVarP(&pass, "password", "p", "", "Password or Personal Access Token (PAT)")
	c.Flags().BoolVar(&fromStdin, "password-stdin", false, "Take the Password or Personal Access Token (PAT) from stdin")
	return c
}

// serverName cuts what users paste around a registry's name; a path other than the hub's stays, for the engine to judge.
func serverName(s string) string {
	if s == config.Hub {
		return s
	}
	s = strings.TrimPrefix(strings.TrimPrefix(s, "https://"), "http://")
	return strings.TrimSuffix(s, "/")
}

// credentials takes name and password from flags, stdin, what is stored, or the terminal.
func (a *App) credentials(cmd *cobra.Command, server, user, pass string, fromStdin bool) (config.Credentials, error) {
	c := config.Credentials{Server: server, Username: user, Password: pass}
	switch {
	case cmd.Flags().Changed("password") && fromStdin:
		return c, errs.New(errs.Invalid, "conflicting options: cannot specify both --password and --password-stdin")
	case cmd.Flags().Changed("password"):
		fmt.Fprintln(a.Err, "WARNING! Using --password via the CLI is insecure. Use --password-stdin.")
	case fromStdin:
		if user == "" {
			return c, errs.New(errs.Invalid, "the --password-stdin option requires --username to be set")
		}
		b, err := io.ReadAll(io.LimitReader(a.stdin(cmd.Context()), 64<<10))
		if err != nil {
			return c, endOf(cmd.Context(), err)
		}
		c.Password = strings.TrimRight(string(b), "\r\n")
		if c.Password == "" {
			return c, errs.New(errs.Invalid, "password is empty")
		}
	}
	if user == "" && pass == "" {
		stored, err := a.config().Get(cmd.Context(), server)
		if err != nil {
			fmt.Fprintf(a.Err, "WARNING: %v\n", err)
		}
		if !stored.Empty() && (stored.Password != "" || stored.IdentityToken != "") {
			fmt.Fprintf(a.Out, "Authenticating with existing credentials... [Username: %s]\n\ni Info → To login with a different account, run 'ply logout' followed by 'ply login'\n\n\n", stored.Username)
			return stored, nil
		}
	}
	if c.Username != "" && c.Password != "" {
		return c, nil
	}
	if a.InTerm == nil {
		return c, errs.New(errs.Invalid, "Error: Cannot perform an interactive login from a non TTY device")
	}
	return c, a.promptCredentials(cmd.Context(), &c)
}

func (a *App) promptCredentials(ctx context.Context, c *config.Credentials) error {
	if c.Username == "" {
		fmt.Fprint(a.Out, "Username: ")
		line, err := readLine(ctx, a.In)
		if err != nil {
			return err
		}
		if c.Username = strings.TrimSpace(line); c.Username == "" {
			return errs.New(errs.Invalid, "Error: Non-null Username Required")
		}
	}
	fmt.Fprint(a.Out, "Password: ")
	type answer struct {
		s   string
		err error
	}
	ch := make(chan answer, 1)
	go func() {
		s, err := a.InTerm.ReadPassword()
		ch <- answer{s, err}
	}()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case l := <-ch:
		fmt.Fprintln(a.Out)
		if l.err != nil {
			return l.err
		}
		if c.Password = l.s; c.Password == "" {
			return errs.New(errs.Invalid, "Error: Password Required")
		}
	}
	return nil
}

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

func (a *App) login(ctx context.Context, c config.Credentials) error {
	api, err := a.engine(ctx)
	if err != nil {
		return err
	}
	body := wire.Auth{Username: c.Username, Password: c.Password, ServerAddress: c.Server, IdentityToken: c.IdentityToken}
	var out struct{ Status, IdentityToken string }
	if err := api.Do(ctx, client.Request{Method: "POST", Path: "/auth", Body: body}, &out); err != nil {
		return err
	}
	if out.IdentityToken != "" {
		c.Password, c.IdentityToken = "", out.IdentityToken
	}
	plain, err := a.config().Store(ctx, c)
	if err != nil {
		return fmt.Errorf("error saving credentials: %w", err)
	}
	if plain {
		fmt.Fprintf(a.Err, unencrypted, a.config().Path)
	}
	if out.Status != "" {
		fmt.Fprintln(a.Out, "\n"+out.Status)
	}
	return nil
}

func (a *App) cmdLogout() *cobra.Command {
	return &cobra.Command{
		Use: "logout [SERVER]", Short: "Log out from a registry", Args: maxArgs(1),
		Long: "Log out from a registry.\nIf no server is specified, the default is defined by the daemon.",
		RunE: func(cmd *cobra.Command, args []string) error {
			server := config.Hub
			if len(args) > 0 {
				server = config.Key(serverName(args[0]))
			}
			fmt.Fprintf(a.Out, "Removing login credentials for %s\n", server)
			_, err := a.config().Erase(cmd.Context(), server)
			if err != nil {
				return fmt.Errorf("WARNING: could not erase credentials: %w", err)
			}
			return nil
		},
	}
}

type searchRow struct {
	format.RowMark
	Description, IsAutomated, IsOfficial, Name, StarCount string
}

var searchTitles = format.Titles{"Name": "NAME", "Description": "DESCRIPTION", "StarCount": "STARS", "IsOfficial": "OFFICIAL", "IsAutomated": "AUTOMATED"}

func (a *App) cmdSearch() *cobra.Command {
	var ft string
	var limit int
	var noTrunc bool
	var filters opts.Filters
	c := &cobra.Command{
		Use: "search [OPTIONS] TERM", Short: "Search Docker Hub for images", Args: exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			q := url.Values{"term": {args[0]}}
			if limit > 0 {
				q.Set("limit", strconv.Itoa(limit))
			}
			if err := filterQuery(q, filters); err != nil {
				return err
			}
			domain := ""
			if host, _, ok := strings.Cut(args[0], "/"); ok && strings.ContainsAny(host, ".:") || host == "localhost" {
				domain = host
			}
			api, err := a.engine(cmd.Context())
			if err != nil {
				return err
			}
			var raw json.RawMessage
			if err := api.Do(cmd.Context(), client.Request{Path: "/images/search", Query: q, Header: a.authHeader(cmd.Context(), domain)}, &raw); err != nil {
				return err
			}
			var list []struct {
				Name        string `json:"name"`
				Description string `json:"description"`
				Stars       int    `json:"star_count"`
				Official    bool   `json:"is_official"`
				Automated   bool   `json:"is_automated"`
			}
			if err := json.Unmarshal(raw, &list); err != nil {
				return err
			}
			rows := make([]searchRow, len(list))
			for i, r := range list {
				rows[i] = searchRow{Name: r.Name, Description: strings.Join(strings.Fields(r.Description), " "), StarCount: strconv.Itoa(r.Stars)}
				if !noTrunc {
					rows[i].Description = format.Ellipsis(rows[i].Description, 45)
				}
				if r.Official {
					rows[i].IsOfficial = "[OK]"
				}
				if r.Automated {
					rows[i].IsAutomated = "[OK]"
				}
			}
			return format.Table(a.Out, ft, "{{.Name}}\t{{.Description}}\t{{.StarCount}}\t{{.IsOfficial}}", searchTitles, rows)
		},
	}
	c.Flags().VarP(&filters, "filter", "f", "Filter output based on conditions provided")
	c.Flags().StringVar(&ft, "format", "", "Pretty-print search using a Go template")
	c.Flags().IntVar(&limit, "limit", 0, "Max number of search results")
	c.Flags().BoolVar(&noTrunc, "no-trunc", false, "Don't truncate output")
	return c
}
