package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"

	"golang.org/x/term"

	"ply/internal/errs"
	"ply/internal/registry/auth"
	"ply/internal/registry/content"
)

const userUsage = `Usage:
  ply-registry user add NAME [--role ROLE=PATTERN]... [--password-stdin]
  ply-registry user passwd NAME [--password-stdin]
  ply-registry user rm NAME
  ply-registry user ls
  ply-registry user grant NAME ROLE=PATTERN...      (NAME ` + auth.Anonymous + ` stands for those who do not log in)
  ply-registry user revoke NAME PATTERN...
  ply-registry user import HTPASSWD [--role ROLE]
  ply-registry user link NAME ISSUER SUBJECT        (who signs in at an OpenID provider as SUBJECT is NAME)
  ply-registry user unlink NAME

A ROLE is reader, writer or admin. A PATTERN is a repository; a component * stands for any one, ** at the end for any number. A user is
the admin of the repositories below its own name. The first user closes the registry and is the admin of everything, unless --role says otherwise.
`

// user changes the users of a registry.
func user(args []string, stdin io.Reader, stdout, stderr io.Writer) error {
	cmd := newPeopleCommand("user", userUsage, stderr)
	roles := cmd.StringArray("role", nil, "role on a pattern, as writer=team/**")
	fromStdin := cmd.Bool("password-stdin", false, "read the password from the first line of the standard input")
	verbs := map[string]int{"add": 1, "passwd": 1, "rm": 1, "ls": 0, "grant": 2, "revoke": 2, "import": 1, "link": 3, "unlink": 1}
	return cmd.change(args, verbs, []string{"grant", "revoke"}, func(users *auth.Users, verb string, args []string) error {
		switch verb {
		case "ls":
			return listUsers(users, stdout)
		case "add":
			grants, err := parseGrants(args[0], *roles)
			if err != nil {
				return err
			}
			password, err := readPassword(stdin, stderr, *fromStdin)
			if err != nil {
				return err
			}
			first, err := users.Add(args[0], password, grants)
			if err == nil && first {
				fmt.Fprintf(stdout, "%s is the first user: the registry is closed now.\n", args[0])
			}
			return err
		case "passwd":
			password, err := readPassword(stdin, stderr, *fromStdin)
			if err != nil {
				return err
			}
			return users.SetPassword(args[0], password)
		case "rm":
			return users.Remove(args[0])
		case "grant":
			return grant(users, args[0], args[1:])
		case "revoke":
			return revoke(users, args[0], args[1:])
		case "link":
			return users.Link(args[0], args[1], args[2])
		case "unlink":
			return users.Link(args[0], "", "")
		}
		return importUsers(users, args[0], *roles, stdout)
	})
}

func grant(users *auth.Users, subject string, roles []string) error {
	grants, err := parseGrants(subject, roles)
	for _, g := range grants {
		err = errors.Join(err, users.Grant(g.Subject, g.Pattern, g.Role))
	}
	return err
}

func revoke(users *auth.Users, subject string, patterns []string) (err error) {
	for _, pattern := range patterns {
		err = errors.Join(err, users.Grant(subject, pattern, ""))
	}
	return err
}

func importUsers(users *auth.Users, name string, roles []string, stdout io.Writer) (err error) {
	role := auth.Role("")
	if len(roles) > 0 {
		if role, err = auth.ParseRole(roles[len(roles)-1]); err != nil {
			return err
		}
	}
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer errs.Close(&err, f)
	n, err := users.Import(f, role)
	if err == nil {
		fmt.Fprintf(stdout, "%d users imported\n", n)
	}
	return err
}

func parseGrants(name string, list []string) (grants []auth.Grant, err error) {
	for _, s := range list {
		r, p, ok := strings.Cut(s, "=")
		if !ok {
			return nil, errs.New(errs.Invalid, "role %q: want ROLE=PATTERN", s)
		}
		role, err := auth.ParseRole(r)
		if err != nil {
			return nil, err
		}
		pattern, err := content.ParsePattern(p)
		if err != nil {
			return nil, err
		}
		grants = append(grants, auth.Grant{Subject: name, Pattern: string(pattern), Role: role})
	}
	return grants, nil
}

func readPassword(stdin io.Reader, stderr io.Writer, fromStdin bool) (string, error) {
	f, ok := stdin.(*os.File)
	if fromStdin || !ok || !term.IsTerminal(int(f.Fd())) {
		if !fromStdin {
			return "", errs.New(errs.Invalid, "the standard input is not a terminal").WithHint("Use --password-stdin.")
		}
		line, err := bufio.NewReader(io.LimitReader(stdin, 4096)).ReadString('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			return "", err
		}
		return strings.TrimRight(line, "\r\n"), nil
	}
	var typed [2]string
	for i, prompt := range []string{"Password: ", "Again: "} {
		fmt.Fprint(stderr, prompt)
		b, err := term.ReadPassword(int(f.Fd()))
		fmt.Fprintln(stderr)
		if err != nil {
			return "", err
		}
		typed[i] = string(b)
	}
	if typed[0] != typed[1] {
		return "", errs.New(errs.Invalid, "the passwords differ")
	}
	return typed[0], nil
}

func listUsers(users *auth.Users, stdout io.Writer) error {
	list, grants := users.List()
	roles := map[string][]string{}
	for _, g := range grants {
		roles[g.Subject] = append(roles[g.Subject], string(g.Role)+"="+g.Pattern)
	}
	w := tabwriter.NewWriter(stdout, 0, 8, 3, ' ', 0)
	groups := map[string][]string{}
	for _, g := range users.Groups() {
		for _, name := range g.Members {
			groups[name] = append(groups[name], g.Name)
		}
	}
	fmt.Fprintln(w, "USER\tCREATED\tROLES\tGROUPS")
	for _, u := range list {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", u.Name, u.Created.Format("2006-01-02"), strings.Join(roles[u.Name], " "), strings.Join(groups[u.Name], " "))
	}
	if r := roles[auth.Anonymous]; len(r) > 0 {
		fmt.Fprintf(w, "%s\t\t%s\t\n", auth.Anonymous, strings.Join(r, " "))
	}
	return w.Flush()
}
