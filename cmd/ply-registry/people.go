package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	osuser "os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/pflag"

	"ply/internal/errs"
	"ply/internal/registry/audit"
	"ply/internal/registry/auth"
	"ply/internal/registry/config"
	"ply/internal/registry/server"
)

// peopleCommand is a command about people and rights. It reads the settings of the registry to find what they are in.
type peopleCommand struct {
	*pflag.FlagSet
	name                 string
	root, database, file *string
}

func newPeopleCommand(name, usage string, stderr io.Writer) *peopleCommand {
	fs := pflag.NewFlagSet("ply-registry "+name, pflag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.Usage = func() { fmt.Fprintf(stderr, "%s\n%s", usage, fs.FlagUsages()) }
	return &peopleCommand{
		FlagSet: fs, name: name,
		root:     fs.String("root", "", "directory of everything durable; by default what the settings of the registry say"),
		database: fs.String("database", "", "address of the PostgreSQL of the registry; by default what the settings of the registry say"),
		file:     fs.String("config", "", "file of settings; by default "+config.DefaultFile+" where it exists"),
	}
}

// parse returns the command below this one, which must be one of verbs, with its arguments, whose number verbs says. Those in more take
// further ones.
func (c *peopleCommand) parse(args []string, verbs map[string]int, more ...string) (verb string, rest []string, err error) {
	if err := c.Parse(args); err != nil {
		return "", nil, err
	}
	if c.NArg() == 0 {
		c.Usage()
		return "", nil, errs.New(errs.Invalid, "%s: want a command", c.name)
	}
	verb, rest = c.Arg(0), c.Args()[1:]
	want, ok := verbs[verb]
	if !ok {
		c.Usage()
		return "", nil, errs.New(errs.Invalid, "%s: there is no command %q", c.name, verb)
	}
	if len(rest) < want || len(rest) > want && !slices.Contains(more, verb) {
		c.Usage()
		return "", nil, errs.New(errs.Invalid, "%s %s: wrong number of arguments", c.name, verb)
	}
	return verb, rest, nil
}

// options returns the settings of the registry. From then on a process of root is one of the owner of its directory.
func (c *peopleCommand) options() (server.Options, error) {
	var named []string
	for flag, value := range map[string]string{"root": *c.root, "database": *c.database, "config": *c.file} {
		if c.Changed(flag) {
			named = append(named, "--"+flag+"="+value)
		}
	}
	settings, _, err := config.Load(pflag.NewFlagSet("", pflag.ContinueOnError), named, os.Environ())
	if err != nil {
		return server.Options{}, err
	}
	if settings.Database == "" {
		if err := asOwner(settings.Root); err != nil {
			return server.Options{}, err
		}
	}
	return settings.Server(nil), nil
}

// change calls do with the users of the registry, the command below this one and its arguments (see parse), and adds what it changes to
// the audit log. A registry that serves them sees the change within a second.
func (c *peopleCommand) change(args []string, verbs map[string]int, more []string, do func(users *auth.Users, verb string, args []string) error) (err error) {
	verb, args, err := c.parse(args, verbs, more...)
	if err != nil {
		return err
	}
	o, err := c.options()
	if err != nil {
		return err
	}
	users, end, err := server.OpenUsers(context.Background(), o)
	if err != nil {
		return err
	}
	defer errs.Close(&err, end)
	return c.note(do(users, verb, args), o, verb, args)
}

// note adds a change to the audit log, with the user of the system who made it.
func (c *peopleCommand) note(err error, o server.Options, verb string, args []string) error {
	if err != nil || verb == "ls" {
		return err
	}
	if _, err := os.Stat(filepath.Join(o.Root, "metadata.db")); err != nil && o.Database == "" {
		return nil // nothing has been served yet
	}
	e := audit.Entry{User: "@" + systemUser(), Action: verb + " " + c.name, Reference: strings.Join(args, " ")}
	if err := server.Note(context.Background(), o, e); err != nil {
		return errs.New(errs.Unavailable, "the change is made, but is not in the audit log: %w", err)
	}
	return nil
}

// systemUser returns who runs this command.
func systemUser() string {
	if name := os.Getenv("SUDO_USER"); name != "" {
		return name
	}
	if u, err := osuser.Current(); err == nil {
		return u.Username
	}
	return strconv.Itoa(os.Getuid())
}

const auditUsage = `Usage:
  ply-registry audit [--user NAME] [--repository NAME] [--action ACTION] [--since TIME] [-n COUNT] [--json]

Prints who did what, from where, to which repository, and with what result, the newest first.
`

func auditLog(args []string, stdout, stderr io.Writer) error {
	cmd := newPeopleCommand("audit", auditUsage, stderr)
	q := audit.Question{}
	cmd.StringVar(&q.User, "user", "", "only what this user did")
	cmd.StringVar(&q.Repository, "repository", "", "only what was done to this repository")
	cmd.StringVar(&q.Action, "action", "", "only this action, such as push, delete or login")
	since := cmd.String("since", "", "only what was done since a time (2026-01-02T15:04:05Z) or a duration ago (24h)")
	cmd.IntVarP(&q.Limit, "count", "n", 100, "how many entries")
	asJSON := cmd.Bool("json", false, "print JSON, an entry per line")
	if err := cmd.Parse(args); err != nil {
		return err
	}
	if cmd.NArg() > 0 || q.Limit < 1 {
		return errs.New(errs.Invalid, "audit: wrong arguments")
	}
	if *since != "" {
		d, err := time.ParseDuration(*since)
		if q.Since = time.Now().Add(-d); err != nil {
			if q.Since, err = time.Parse(time.RFC3339, *since); err != nil {
				return errs.New(errs.Invalid, "--since %q is neither a time nor a duration", *since)
			}
		}
	}
	o, err := cmd.options()
	if err != nil {
		return err
	}
	list, _, err := server.AuditEntries(context.Background(), o, q)
	if err != nil {
		return err
	}
	if *asJSON {
		enc := json.NewEncoder(stdout)
		for _, e := range list {
			if err := enc.Encode(e); err != nil {
				return err
			}
		}
		return nil
	}
	w := tabwriter.NewWriter(stdout, 0, 8, 3, ' ', 0)
	fmt.Fprintln(w, "TIME\tUSER\tADDRESS\tACTION\tREPOSITORY\tREFERENCE\tSTATUS\tTIMES")
	for _, e := range list {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%q\t%d\t%d\n", e.Time.Format(time.RFC3339), e.User, e.Address, e.Action, e.Repository, e.Reference, e.Status, max(e.Count, 1))
	}
	return w.Flush()
}

const groupUsage = `Usage:
  ply-registry group add NAME [--role ROLE=PATTERN]...
  ply-registry group rm NAME
  ply-registry group ls
  ply-registry group join NAME USER...
  ply-registry group leave NAME USER...
  ply-registry group claims NAME [CLAIM]...         (groups of the OpenID provider whose users are members)
  ply-registry group grant NAME ROLE=PATTERN...
  ply-registry group revoke NAME PATTERN...

Members of a group may do what is granted to it. Roles and patterns are those of ply-registry user.
`

func group(args []string, stdout, stderr io.Writer) error {
	cmd := newPeopleCommand("group", groupUsage, stderr)
	roles := cmd.StringArray("role", nil, "role on a pattern, as writer=team/**")
	verbs := map[string]int{"add": 1, "rm": 1, "ls": 0, "join": 2, "leave": 2, "claims": 1, "grant": 2, "revoke": 2}
	return cmd.change(args, verbs, []string{"join", "leave", "claims", "grant", "revoke"}, func(users *auth.Users, verb string, args []string) error {
		switch verb {
		case "ls":
			return listGroups(users, stdout)
		case "add":
			if _, err := parseGrants("", *roles); err != nil {
				return err
			}
			if err := users.AddGroup(args[0]); err != nil {
				return err
			}
			return grant(users, auth.GroupSubject(args[0]), *roles)
		case "rm":
			return users.RemoveGroup(args[0])
		case "join":
			return users.Join(args[0], args[1:]...)
		case "leave":
			return users.Leave(args[0], args[1:]...)
		case "claims":
			return users.SetClaims(args[0], args[1:]...)
		case "grant":
			return grant(users, auth.GroupSubject(args[0]), args[1:])
		}
		return revoke(users, auth.GroupSubject(args[0]), args[1:])
	})
}

func listGroups(users *auth.Users, stdout io.Writer) error {
	_, grants := users.List()
	w := tabwriter.NewWriter(stdout, 0, 8, 3, ' ', 0)
	fmt.Fprintln(w, "GROUP\tMEMBERS\tCLAIMS\tROLES")
	for _, g := range users.Groups() {
		var roles []string
		for _, grant := range grants {
			if grant.Subject == auth.GroupSubject(g.Name) {
				roles = append(roles, string(grant.Role)+"="+grant.Pattern)
			}
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", g.Name, strings.Join(g.Members, " "), strings.Join(g.Claims, " "), strings.Join(roles, " "))
	}
	return w.Flush()
}

const namespaceUsage = `Usage:
  ply-registry namespace set NAME private|internal|public
  ply-registry namespace rm NAME
  ply-registry namespace ls

A namespace is the repository of its name with all below it. Everyone may pull from a public one, everyone who logs in from an internal one,
and those with a role from any. Without a namespace a repository is private. Of namespaces inside of each other the innermost counts.
`

func namespace(args []string, stdout, stderr io.Writer) error {
	cmd := newPeopleCommand("namespace", namespaceUsage, stderr)
	verbs := map[string]int{"set": 2, "rm": 1, "ls": 0}
	return cmd.change(args, verbs, nil, func(users *auth.Users, verb string, args []string) error {
		switch verb {
		case "set":
			v, err := auth.ParseVisibility(args[1])
			if err != nil {
				return err
			}
			return users.SetNamespace(args[0], v)
		case "rm":
			return users.RemoveNamespace(args[0])
		}
		w := tabwriter.NewWriter(stdout, 0, 8, 3, ' ', 0)
		fmt.Fprintln(w, "NAMESPACE\tVISIBILITY\tCREATED")
		for _, n := range users.Namespaces() {
			fmt.Fprintf(w, "%s\t%s\t%s\n", n.Name, n.Visibility, n.Created.Format(time.DateOnly))
		}
		return w.Flush()
	})
}

const tokenUsage = `Usage:
  ply-registry token add USER NAME --scope PATTERN[=ACTION,ACTION]... [--expires DAYS]
  ply-registry token rm USER ID
  ply-registry token ls [USER]

A personal access token is used in place of the password of its user, for the repositories and actions of its scopes (pull, push, delete;
pull if none is named) and never for more than its user may do. Its text is printed once and kept nowhere. NAME is what the user calls it.
`

// defaultTokenDays is how long a token lives unless its user says otherwise.
const defaultTokenDays = 90

func token(args []string, stdout, stderr io.Writer) (err error) {
	cmd := newPeopleCommand("token", tokenUsage, stderr)
	texts := cmd.StringArray("scope", nil, "what the token is for, as team/**=pull,push")
	days := cmd.Int("expires", defaultTokenDays, "days after which it expires; 0 = never")
	verb, args, err := cmd.parse(args, map[string]int{"add": 2, "rm": 2, "ls": 0}, "ls")
	if err != nil {
		return err
	}
	if len(args) > 2 || verb == "ls" && len(args) > 1 {
		return errs.New(errs.Invalid, "token %s: wrong number of arguments", verb)
	}
	if *days < 0 || *days > 3650 {
		return errs.New(errs.Invalid, "--expires %s: want 0 to 3650 days", strconv.Itoa(*days))
	}
	o, err := cmd.options()
	if err != nil {
		return err
	}
	ctx, stop := interrupted()
	defer stop()
	users, tokens, end, err := server.OpenTokens(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = cmd.note(err, o, verb, args) }()
	defer errs.Close(&err, end)
	switch verb {
	case "rm":
		return tokens.Revoke(ctx, args[0], args[1])
	case "add":
		var scopes []auth.TokenScope
		for _, text := range *texts {
			s, err := auth.ParseTokenScope(text)
			if err != nil {
				return err
			}
			scopes = append(scopes, s)
		}
		user, err := users.Find(args[0])
		if err != nil {
			return err
		}
		_, text, err := tokens.Create(ctx, user, args[1], scopes, time.Duration(*days)*24*time.Hour)
		if err == nil {
			fmt.Fprintln(stdout, text)
		}
		return err
	}
	user := ""
	if len(args) > 0 {
		user = args[0]
	}
	list, err := tokens.List(ctx, user, maxListed)
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(stdout, 0, 8, 3, ' ', 0)
	fmt.Fprintln(w, "USER\tID\tNAME\tSCOPES\tCREATED\tEXPIRES\tUSED")
	for _, t := range list {
		var scopes []string
		for _, s := range t.Scopes {
			scopes = append(scopes, s.String())
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", t.User, t.ID, t.Name, strings.Join(scopes, " "), t.Created.Format(time.DateOnly), date(t.Expires), date(t.Used))
	}
	return w.Flush()
}

// maxListed is how many tokens are listed at once.
const maxListed = 100_000

func date(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return t.Format(time.DateOnly)
}
