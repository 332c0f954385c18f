// Package web serves the pages of the registry, for people with a browser: repositories, tags, images with their layers, history and
// files, the difference between two images, what is stored, personal access tokens, users and groups. The pages are made here; a script
// only copies lines.
//
// Invariants: a page has nothing of a repository that its visitor may not pull from, and answers as if it did not exist. What images,
// tags, files and people contain is text on a page and never a part of it. Users and groups are changed by an admin and tokens are made
// by their user, each by its session or password; the text of a token is on the page that answers its making and on no other. A page of
// another site can change nothing, and cannot frame a page. Memory and time for the files of a layer are bounded, whatever the layer says
// of itself.
package web
