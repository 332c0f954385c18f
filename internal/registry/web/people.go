package web

import (
	"net/http"
	"net/url"
	"slices"
	"strings"

	"ply/internal/errs"
	"ply/internal/registry/auth"
	"ply/internal/registry/content"
)

const (
	peoplePage = 50
	// maxShown is how many members of a group, and roles of one subject, a page shows.
	maxShown = 1000
)

// The paths of people.
const (
	usersPath  = "/people/users/"
	groupsPath = "/people/groups/"
)

// admin checks that the visitor may see and change users: it is an admin who has signed in itself.
func (v *visit) admin() error {
	if _, err := v.self(); err != nil || !v.caller.Admin() {
		return errNoPage
	}
	return nil
}

// adminVisit is a visit of an admin to the pages about people.
type adminVisit struct{ *visit }

// forAdmins returns what serves a page about people to an admin, and not to others.
func forAdmins(serve func(adminVisit) error) func(*visit) error {
	return func(v *visit) error {
		err := v.admin()
		if err == nil && v.r.Method == http.MethodPost {
			err = v.writable()
		}
		if err != nil {
			return err
		}
		return serve(adminVisit{v})
	}
}

// roles returns what is granted to a subject.
func roles(grants []auth.Grant, subject string) (list []auth.Grant) {
	for _, g := range grants {
		if g.Subject == subject {
			list = append(list, g)
		}
	}
	return list
}

// someRoles returns roles as a line of text for a list.
func someRoles(grants []auth.Grant) string {
	var list []string
	for i, g := range grants {
		if i == 3 {
			list = append(list, "…")
			break
		}
		list = append(list, string(g.Role)+" on "+g.Pattern)
	}
	return strings.Join(list, ", ")
}

// part returns a page of a list, its number from 1, and how many pages there are.
func part[T any](v adminVisit, list []T) (rows []T, n, pages int, err error) {
	n, err = v.pageNumber()
	pages = (len(list) + peoplePage - 1) / peoplePage
	from := min((min(n, 1<<20)-1)*peoplePage, len(list))
	if err != nil {
		return nil, 0, 0, err
	}
	return list[from:min(from+peoplePage, len(list))], n, pages, nil
}

// users shows the users.
func (v adminVisit) users() error {
	type row struct {
		auth.User
		Groups, Roles string
	}
	users, grants := v.h.Users.List()
	term := v.r.URL.Query().Get("name")
	found := []row{}
	for _, u := range users {
		if strings.Contains(u.Name, term) {
			found = append(found, row{User: u})
		}
	}
	slices.SortFunc(found, func(a, b row) int { return strings.Compare(a.Name, b.Name) })
	rows, n, pages, err := part(v, found)
	if err != nil {
		return err
	}
	by, groups := map[string][]auth.Grant{}, map[string][]string{}
	for _, g := range grants {
		by[g.Subject] = append(by[g.Subject], g)
	}
	for _, g := range v.h.Users.Groups() {
		for _, m := range g.Members {
			groups[m] = append(groups[m], g.Name)
		}
	}
	for i := range rows {
		rows[i].Roles, rows[i].Groups = someRoles(by[rows[i].Name]), strings.Join(groups[rows[i].Name], " ")
	}
	v.show("users", http.StatusOK, "Users", map[string]any{
		"Rows": rows, "Term": term, "Found": len(found), "Page": n, "Pages": pages, "Anonymous": auth.Anonymous, "Everyone": someRoles(by[auth.Anonymous]),
	})
	return nil
}

// groups shows the groups.
func (v adminVisit) groups() error {
	type row struct {
		auth.Group
		Roles string
	}
	_, grants := v.h.Users.List()
	found := []row{}
	for _, g := range v.h.Users.Groups() {
		found = append(found, row{Group: g})
	}
	slices.SortFunc(found, func(a, b row) int { return strings.Compare(a.Name, b.Name) })
	rows, n, pages, err := part(v, found)
	if err != nil {
		return err
	}
	for i := range rows {
		rows[i].Roles = someRoles(roles(grants, auth.GroupSubject(rows[i].Name)))
	}
	v.show("groups", http.StatusOK, "Groups", map[string]any{"Rows": rows, "Page": n, "Pages": pages})
	return nil
}

// user shows one user, or the roles of those who do not sign in.
func (v adminVisit) user() error {
	name := v.r.PathValue("name")
	_, grants := v.h.Users.List()
	data := map[string]any{"Name": name, "Roles": capped(roles(grants, name)), "Action": usersPath + url.PathEscape(name), "AllRoles": auth.Roles()}
	if name == auth.Anonymous {
		v.show("user", http.StatusOK, "Everyone", data)
		return nil
	}
	user, err := v.h.Users.Find(name)
	if err != nil {
		return err
	}
	tokens, err := v.tokensOf(user)
	if err != nil {
		return err
	}
	groups := []string{}
	for _, g := range v.h.Users.Groups() {
		if slices.Contains(g.Members, name) {
			groups = append(groups, g.Name)
		}
	}
	data["User"], data["Tokens"], data["Groups"], data["Self"] = user, tokens, groups, name == v.caller.Name()
	v.show("user", http.StatusOK, name, data)
	return nil
}

func capped[T any](list []T) []T { return list[:min(len(list), maxShown)] }

// group shows one group.
func (v adminVisit) group() error {
	name := v.r.PathValue("name")
	groups := v.h.Users.Groups()
	i := slices.IndexFunc(groups, func(g auth.Group) bool { return g.Name == name })
	if i < 0 {
		return errNoPage
	}
	_, grants := v.h.Users.List()
	v.show("group", http.StatusOK, name, map[string]any{
		"Group": groups[i], "Members": capped(groups[i].Members), "Roles": capped(roles(grants, auth.GroupSubject(name))), "Action": groupsPath + url.PathEscape(name),
		"AllRoles": auth.Roles(), "Provider": v.h.SignIn != "",
	})
	return nil
}

// changePeople makes a change of users that a form asks for, and shows the page of whom it is about.
func (v adminVisit) changePeople(change func(name string) error, to string) error {
	if err := change(v.r.PathValue("name")); err != nil {
		return err
	}
	http.Redirect(v.w, v.r, to, http.StatusSeeOther)
	return nil
}

func (v adminVisit) addUser() error {
	name := v.r.PostForm.Get("name")
	return v.changePeople(func(string) error {
		_, err := v.h.Users.Add(name, v.r.PostForm.Get("password"), nil)
		return err
	}, usersPath+url.PathEscape(name))
}

func (v adminVisit) addGroup() error {
	name := v.r.PostForm.Get("name")
	return v.changePeople(func(string) error { return v.h.Users.AddGroup(name) }, groupsPath+url.PathEscape(name))
}

// confirmed reports, as an error, that the visitor has not typed a name once more.
func (v adminVisit) confirmed(name string) error {
	if v.r.PostForm.Get("confirm") != name {
		return errs.New(errs.Invalid, "nothing is removed: what you typed is not %s", name)
	}
	return nil
}

// role changes a role of a subject: the one of the form on its pattern, or none.
func (v adminVisit) role(subject string, revoke bool) error {
	pattern, err := content.ParsePattern(v.r.PostForm.Get("pattern"))
	if err != nil {
		return err
	}
	role := auth.Role("")
	if !revoke {
		if role, err = auth.ParseRole(v.r.PostForm.Get("role")); err != nil {
			return err
		}
	}
	return v.h.Users.Grant(subject, string(pattern), role)
}

// changeUser changes a user, by the last part of the path.
func (v adminVisit) changeUser() error {
	do, self := v.r.PathValue("do"), v.r.PathValue("name") == v.caller.Name()
	to := usersPath + url.PathEscape(v.r.PathValue("name"))
	if do == "rm" {
		to = "/people"
	}
	return v.changePeople(func(name string) error {
		if self && do != "grant" {
			return errs.New(errs.Invalid, "you cannot take rights from yourself").WithHint("Ask another administrator, or use the command line.")
		}
		switch do {
		case "passwd":
			return v.h.Users.SetPassword(name, v.r.PostForm.Get("password"))
		case "rm":
			if err := v.confirmed(name); err != nil {
				return err
			}
			return v.h.Users.Remove(name)
		case "grant", "revoke":
			return v.role(name, do == "revoke")
		}
		return errNoPage
	}, to)
}

// changeGroup changes a group, by the last part of the path.
func (v adminVisit) changeGroup() error {
	do, form := v.r.PathValue("do"), v.r.PostForm
	to := groupsPath + url.PathEscape(v.r.PathValue("name"))
	if do == "rm" {
		to = "/people/groups"
	}
	return v.changePeople(func(name string) error {
		switch do {
		case "join":
			return v.h.Users.Join(name, form.Get("user"))
		case "leave":
			return v.h.Users.Leave(name, form.Get("user"))
		case "claims":
			claims := []string{}
			for c := range strings.SplitSeq(form.Get("claims"), "\n") {
				if c = strings.TrimSpace(c); c != "" {
					claims = append(claims, c)
				}
			}
			return v.h.Users.SetClaims(name, claims...)
		case "rm":
			if err := v.confirmed(name); err != nil {
				return err
			}
			return v.h.Users.RemoveGroup(name)
		case "grant", "revoke":
			return v.role(auth.GroupSubject(name), do == "revoke")
		}
		return errNoPage
	}, to)
}

// describePeople says what a form about users or tokens changes, in the words of the command line.
func describePeople(r *http.Request) (action, reference string, ok bool) {
	form := r.PostForm
	words := func(list ...string) string { return strings.Join(strings.Fields(strings.Join(list, " ")), " ") }
	switch r.URL.Path {
	case "/tokens":
		return "add token", form.Get("name"), true
	case "/tokens/revoke":
		return "rm token", words(form.Get("user"), form.Get("id")), true
	case "/password":
		return "passwd user", "", true
	case "/people":
		return "add user", form.Get("name"), true
	case "/people/groups":
		return "add group", form.Get("name"), true
	}
	kind := "user"
	rest, ok := strings.CutPrefix(r.URL.Path, usersPath)
	if !ok {
		kind = "group"
		if rest, ok = strings.CutPrefix(r.URL.Path, groupsPath); !ok {
			return "", "", false
		}
	}
	name, do, ok := strings.Cut(rest, "/")
	if !ok {
		return "", "", false
	}
	role := ""
	if form.Get("role") != "" {
		role = form.Get("role") + "="
	}
	return do + " " + kind, words(name, form.Get("user"), role+form.Get("pattern"), form.Get("claims")), true
}
