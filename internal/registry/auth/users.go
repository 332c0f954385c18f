package auth

import (
	"bufio"
	"bytes"
	"cmp"
	"crypto/rand"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/bcrypt"
	"golang.org/x/sys/unix"

	"ply/internal/durable"
	"ply/internal/errs"
	"ply/internal/record"
	"ply/internal/registry/content"
)

const (
	usersVersion = 2        // 1 had neither groups nor namespaces
	maxUsers     = 64 << 20 // bytes of the file
	maxPassword  = 72       // bytes; bcrypt ignores what follows
	minPassword  = 1
	passwordCost = 12 // by bcrypt's count; the work doubles with each
)

// User is someone who can log in.
type User struct {
	Name     string    `json:"name"`
	Password string    `json:"password"` // bcrypt; "" = the user has none and signs in at a provider
	Created  time.Time `json:"created"`
	// ID tells a user from another one who had the name before; "" = one of an older release.
	ID string `json:"id,omitempty"`

	// Issuer and Subject say who the user is at an OpenID provider; "" = it does not sign in there.
	Issuer  string `json:"issuer,omitempty"`
	Subject string `json:"subject,omitempty"`
	// Claims are the groups that the provider named at the last sign-in, without those that no group here asks for.
	Claims   []string  `json:"claims,omitempty"`
	SignedIn time.Time `json:"signedIn,omitzero"` // at the provider, the last time
}

type usersRecord struct {
	Users      []User      `json:"users"`
	Grants     []Grant     `json:"grants"`
	Groups     []Group     `json:"groups,omitempty"`
	Namespaces []Namespace `json:"namespaces,omitempty"`
}

// Users is the file of users, or the document of users that replicas share. A change by another process is seen within a second.
// Safe for concurrent use.
type Users struct {
	path string
	docs Documents // nil = the users are in the file
	// Cost is that of new hashes, by bcrypt's count; 0 = passwordCost. It is set before use.
	Cost int

	mu      sync.Mutex
	checked time.Time
	seen    os.FileInfo // of the file that was read; nil = there was none
	value   []byte      // of the document that was read; nil = there was none
	now     *table
	failed  error
}

// table is what a file of users says. It is never changed.
type table struct {
	closed     bool
	users      map[string]User
	grants     map[string][]Grant
	groups     map[string][]string // by user
	claimed    map[string][]string // groups by claim
	namespaces map[string]Visibility
	record     usersRecord
}

const recheck = time.Second

// OpenUsers reads the users of a root. The error's class is errs.DataLoss when the file is damaged: then nobody must be let in.
func OpenUsers(root string) (*Users, error) {
	u := &Users{path: filepath.Join(root, "users.json")}
	fi, t, err := u.read()
	if err != nil {
		return nil, err
	}
	u.seen, u.now, u.checked = fi, t, time.Now()
	return u, nil
}

func (u *Users) read() (os.FileInfo, *table, error) {
	fi, err := os.Stat(u.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &table{}, nil
	}
	if err != nil {
		return nil, nil, err
	}
	var r usersRecord
	if err := record.ReadFile(durable.OS, u.path, maxUsers, usersVersion, &r); err != nil {
		return nil, nil, err
	}
	return fi, newTable(r), nil
}

func newTable(r usersRecord) *table {
	t := &table{
		closed: true, users: map[string]User{}, grants: map[string][]Grant{}, groups: map[string][]string{}, claimed: map[string][]string{},
		namespaces: map[string]Visibility{}, record: r,
	}
	for _, user := range r.Users {
		t.users[user.Name] = user
	}
	for _, g := range r.Grants {
		t.grants[g.Subject] = append(t.grants[g.Subject], g)
	}
	for _, g := range r.Groups {
		for _, name := range g.Members {
			t.groups[name] = append(t.groups[name], g.Name)
		}
		for _, claim := range g.Claims {
			t.claimed[claim] = append(t.claimed[claim], g.Name)
		}
	}
	for _, n := range r.Namespaces {
		t.namespaces[n.Name] = n.Visibility
	}
	return t
}

// current returns the users. While the file is damaged or gone, those of before stay.
func (u *Users) current() *table {
	u.mu.Lock()
	if time.Since(u.checked) < recheck {
		defer u.mu.Unlock()
		return u.now
	}
	u.checked = time.Now()
	if u.docs != nil {
		u.mu.Unlock()
		return u.shared()
	}
	defer u.mu.Unlock()
	fi, err := os.Stat(u.path)
	if err != nil || u.seen != nil && os.SameFile(fi, u.seen) && fi.ModTime().Equal(u.seen.ModTime()) && fi.Size() == u.seen.Size() {
		return u.now
	}
	fi, t, err := u.read()
	if u.failed = err; err == nil && t.closed {
		u.seen, u.now = fi, t
	}
	return u.now
}

// forget lets the next question read the users again.
func (u *Users) forget() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.checked = time.Time{}
}

// Failed returns why a change of the file was not taken over; nil when it was.
func (u *Users) Failed() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.failed
}

// Find returns a user. The error's class is errs.NotFound when there is none of this name.
func (u *Users) Find(name string) (User, error) {
	user, ok := u.user(name)
	if !ok {
		return user, errs.New(errs.NotFound, "user %s does not exist", name)
	}
	return user, nil
}

// Closed reports whether there is a file of users.
func (u *Users) Closed() bool { return u.current().closed }

// List returns the users and grants.
func (u *Users) List() ([]User, []Grant) {
	r := u.current().record
	return r.Users, r.Grants
}

// change applies edit to the newest content of the file. Other processes wait.
func (u *Users) change(edit func(*usersRecord) error) (err error) {
	if u.docs != nil {
		return u.changeShared(edit)
	}
	if err := durable.MkdirPrivate(durable.OS, filepath.Dir(u.path)); err != nil {
		return err
	}
	lock, err := os.OpenFile(u.path+".lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer errs.Close(&err, lock)
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return err
	}
	_, t, err := u.read()
	if err != nil {
		return err
	}
	r, err := t.edited(edit)
	if err != nil {
		return err
	}
	if err := record.WriteFile(durable.OS, u.path, usersVersion, r, 0o600); err != nil {
		return err
	}
	u.mu.Lock()
	u.checked = time.Time{}
	u.mu.Unlock()
	return nil
}

// checkName accepts what a component of a repository can be, because a user owns the repositories below its name.
func checkName(name string) error {
	if _, err := content.ParseRepository(name); err != nil || strings.Contains(name, "/") {
		return errs.New(errs.Invalid, "user %q: want lower-case letters and digits, separated by one of . _ -", name)
	}
	return nil
}

func (u *Users) hash(password string) (string, error) {
	switch {
	case len(password) < minPassword:
		return "", errs.New(errs.Invalid, "the password is empty")
	case len(password) > maxPassword:
		return "", errs.New(errs.Invalid, "the password has %d bytes, the limit is %d", len(password), maxPassword)
	case isToken(password):
		return "", errs.New(errs.Invalid, "the password looks like a personal access token")
	case strings.ContainsAny(password, "\x00\r\n"):
		return "", errs.New(errs.Invalid, "the password has a NUL or a line end in it")
	}
	b, err := bcrypt.GenerateFromPassword([]byte(password), cmp.Or(u.Cost, passwordCost))
	return string(b), err
}

func newUser(name, hash string) User {
	return User{Name: name, Password: hash, Created: time.Now().UTC().Truncate(time.Second), ID: rand.Text()}
}

func (r *usersRecord) find(name string) int {
	return slices.IndexFunc(r.Users, func(u User) bool { return u.Name == name })
}

// Add adds a user with grants, and reports whether it is the first one, whom it makes the admin of everything when there are no
// grants. The error's class is errs.Exists when there is a user of this name.
func (u *Users) Add(name, password string, grants []Grant) (first bool, err error) {
	if err := checkName(name); err != nil {
		return false, err
	}
	h, err := u.hash(password)
	if err != nil {
		return false, err
	}
	return first, u.change(func(r *usersRecord) error {
		if r.find(name) >= 0 {
			return errs.New(errs.Exists, "user %s exists", name)
		}
		first = len(r.Users) == 0
		if first && len(grants) == 0 {
			grants = []Grant{{Subject: name, Pattern: "**", Role: Admin}}
		}
		r.Users = append(r.Users, newUser(name, h))
		r.Grants = append(r.Grants, grants...)
		return nil
	})
}

// CopyTo makes the users, groups, namespaces and grants those of another registry that has none yet, and returns how many users it then has of them.
func (u *Users) CopyTo(other *Users) (n int, err error) {
	from := u.current()
	if !from.closed {
		return 0, nil
	}
	err = other.change(func(r *usersRecord) error {
		n = 0
		if len(r.Users) == 0 && len(r.Grants) == 0 {
			*r = from.record.clone()
			n = len(r.Users)
		}
		return nil
	})
	return n, err
}

// Remove removes a user with its grants.
func (u *Users) Remove(name string) error {
	return u.change(func(r *usersRecord) error {
		i := r.find(name)
		if i < 0 {
			return errs.New(errs.NotFound, "user %s does not exist", name)
		}
		r.Users = slices.Delete(r.Users, i, i+1)
		r.Grants = slices.DeleteFunc(r.Grants, func(g Grant) bool { return g.Subject == name })
		for i, g := range r.Groups {
			r.Groups[i].Members = slices.DeleteFunc(g.Members, func(m string) bool { return m == name })
		}
		return nil
	})
}

// SetPassword changes the password of a user.
func (u *Users) SetPassword(name, password string) error {
	h, err := u.hash(password)
	if err != nil {
		return err
	}
	return u.change(func(r *usersRecord) error {
		i := r.find(name)
		if i < 0 {
			return errs.New(errs.NotFound, "user %s does not exist", name)
		}
		r.Users[i].Password = h
		return nil
	})
}

// Grant gives a role on a pattern to a user, a group (see GroupSubject) or Anonymous, instead of the one that it has there. Role ""
// takes it away.
func (u *Users) Grant(subject, pattern string, role Role) error {
	if _, err := content.ParsePattern(pattern); err != nil {
		return err
	}
	return u.change(func(r *usersRecord) error {
		if group, ok := strings.CutPrefix(subject, groupPrefix); ok {
			if r.findGroup(group) < 0 {
				return errs.New(errs.NotFound, "group %s does not exist", group)
			}
		} else if subject != Anonymous && r.find(subject) < 0 {
			return errs.New(errs.NotFound, "user %s does not exist", subject)
		}
		before := len(r.Grants)
		r.Grants = slices.DeleteFunc(r.Grants, func(g Grant) bool { return g.Subject == subject && g.Pattern == pattern })
		if role != "" {
			r.Grants = append(r.Grants, Grant{subject, pattern, role})
		} else if len(r.Grants) == before {
			return errs.New(errs.NotFound, "%s has no role on %s", subject, pattern)
		}
		return nil
	})
}

// Import adds the users of an htpasswd file, or changes their passwords. Each that is new gets a role on everything. The error's
// class is errs.Invalid for a line that is not a user and a hash of bcrypt; then nobody is imported.
func (u *Users) Import(htpasswd io.Reader, role Role) (n int, err error) {
	var list []User
	lines := bufio.NewScanner(io.LimitReader(htpasswd, maxUsers))
	for i := 1; lines.Scan(); i++ {
		line := bytes.TrimSpace(lines.Bytes())
		if len(line) == 0 || line[0] == '#' {
			continue
		}
		name, h, _ := strings.Cut(string(line), ":")
		if err := checkName(name); err != nil {
			return 0, errs.New(errs.Invalid, "line %d: %w", i, err)
		}
		if c, err := bcrypt.Cost([]byte(h)); err != nil || c > 16 {
			return 0, errs.New(errs.Invalid, "line %d: the password of %s is not a usable hash of bcrypt", i, name).WithHint("Make it with htpasswd -B.")
		}
		list = append(list, newUser(name, h))
	}
	if err := lines.Err(); err != nil {
		return 0, err
	}
	return len(list), u.change(func(r *usersRecord) error {
		for _, user := range list {
			if i := r.find(user.Name); i >= 0 {
				r.Users[i].Password = user.Password
				continue
			}
			r.Users = append(r.Users, user)
			if role != "" {
				r.Grants = append(r.Grants, Grant{user.Name, "**", role})
			}
		}
		return nil
	})
}
