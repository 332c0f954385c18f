// Package web serves the pages of the registry, for people with a browser: repositories, tags, images with their layers, history and
// files, the difference between two images, and what is stored. The pages are made here; a script only copies lines.
//
// Invariants: a page has nothing of a repository that its visitor may not pull from, and answers as if it did not exist. What images,
// tags and files contain is text on a page and never a part of it. A page of another site can change nothing, and cannot frame
// a page. Memory and time for the files of a layer are bounded, whatever the layer says of itself.
package web
