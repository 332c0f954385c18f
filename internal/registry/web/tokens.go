package web

import (
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"ply/internal/errs"
	"ply/internal/registry/access"
	"ply/internal/registry/auth"
)

// defaultTokenDays is how long a token lives unless its user says otherwise.
const defaultTokenDays = 90

// tokenDays are the lives of tokens, in days, that a form offers; 0 = it does not expire.
var tokenDays = []int{7, 30, defaultTokenDays, 365, 0}

// self returns the visitor, who must be a user that has signed in itself.
func (v *visit) self() (auth.User, error) {
	if o, ok := v.caller.(owner); v.h.Users == nil || !ok || !o.Whole() {
		return auth.User{}, errNoPage
	}
	return v.h.Users.Find(v.caller.Name())
}

// writable reports, as an error, that nothing can be changed.
func (v *visit) writable() error {
	if v.h.ReadOnly != nil && v.h.ReadOnly() {
		return errs.New(errs.Forbidden, "the registry is read-only")
	}
	return nil
}

// changer is self of a visit that may change something.
func (v *visit) changer() (auth.User, error) {
	user, err := v.self()
	if err == nil {
		err = v.writable()
	}
	return user, err
}

// tokenRow is a personal access token in a list.
type tokenRow struct {
	auth.AccessToken
	Expired bool
}

// tokensOf lists the tokens of a user, the newest first.
func (v *visit) tokensOf(user auth.User) ([]tokenRow, error) {
	found, err := v.h.Tokens.List(v.r.Context(), user.Name, 10*auth.MaxTokens)
	rows := []tokenRow{}
	for _, t := range slices.Backward(found) {
		if t.UserID == user.ID { // not one of an earlier user of this name
			rows = append(rows, tokenRow{t, !t.Expires.IsZero() && !time.Now().Before(t.Expires)})
		}
	}
	slices.SortStableFunc(rows, func(a, b tokenRow) int { return b.Created.Compare(a.Created) })
	return rows, err
}

// tokens shows a user its tokens.
func (v *visit) tokens() error {
	user, err := v.self()
	if err != nil {
		return err
	}
	rows, err := v.tokensOf(user)
	if err != nil {
		return err
	}
	v.show("tokens", http.StatusOK, "Tokens", map[string]any{
		"Rows": rows, "Days": tokenDays, "Default": defaultTokenDays, "Actions": access.Actions(), "User": user.Name,
		"Password": user.Password != "",
	})
	return nil
}

// createToken makes a token, whose text is on the page that answers and on no other.
func (v *visit) createToken() error {
	user, err := v.changer()
	if err != nil {
		return err
	}
	form := v.r.PostForm
	days, err := strconv.Atoi(form.Get("days"))
	if err != nil || !slices.Contains(tokenDays, days) {
		return errs.New(errs.Invalid, "the days must be those of the form")
	}
	var scopes []auth.TokenScope
	for pattern := range strings.FieldsSeq(form.Get("repositories")) {
		s := auth.TokenScope{Repositories: pattern}
		for _, a := range form["actions"] {
			s.Actions = append(s.Actions, access.Action(a))
		}
		scopes = append(scopes, s)
	}
	t, text, err := v.h.Tokens.Create(v.r.Context(), user, form.Get("name"), scopes, time.Duration(days)*24*time.Hour)
	if err != nil {
		return err
	}
	v.show("token", http.StatusCreated, "New token", map[string]any{"Token": t, "Text": text, "User": user.Name})
	return nil
}

// revokeToken revokes a token of the visitor, or for an admin one of another user.
func (v *visit) revokeToken() error {
	self, err := v.changer()
	if err != nil {
		return err
	}
	user, back := self.Name, "/tokens"
	if other := v.r.PostForm.Get("user"); other != "" && other != user {
		if !v.caller.Admin() {
			return errNoPage
		}
		user, back = other, "/people/users/"+url.PathEscape(other)
	}
	if err := v.h.Tokens.Revoke(v.r.Context(), user, v.r.PostForm.Get("id")); err != nil {
		return err
	}
	http.Redirect(v.w, v.r, back, http.StatusSeeOther)
	return nil
}

// changePassword changes the password of the visitor, which ends its sessions elsewhere.
func (v *visit) changePassword() error {
	user, err := v.changer()
	if err != nil {
		return err
	}
	form := v.r.PostForm
	if form.Get("new") != form.Get("again") {
		return errs.New(errs.Invalid, "nothing is changed: the new passwords differ")
	}
	// The old password is asked for, so that an open page of another one is not enough, and wrong ones count as at a sign-in.
	if err := v.h.Gate.SignIn(v.w, v.r, user.Name, form.Get("old")); err != nil {
		return err
	}
	if err := v.h.Users.SetPassword(user.Name, form.Get("new")); err != nil {
		return err
	}
	if err := v.h.Gate.SignIn(v.w, v.r, user.Name, form.Get("new")); err != nil {
		return err
	}
	http.Redirect(v.w, v.r, "/tokens", http.StatusSeeOther)
	return nil
}
