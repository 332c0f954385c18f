// Package repository has what clients do to repositories, on the metadata and the blobs together: push, mount, pull and delete.
//
// Invariants: a blob can be read through a repository that links it, and through no other. Bytes are stored and linked under the
// lock of their digest. What is acknowledged is durable.
package repository

import (
	"context"
	"errors"
	"io"
	"time"

	"ply/internal/errs"
	"ply/internal/registry/blobs"
	"ply/internal/registry/content"
	"ply/internal/registry/metadata"
)

// Service serves repositories. Safe for concurrent use.
type Service struct {
	Metadata metadata.Store
	Blobs    blobs.Store
	// Missing lets manifests refer to blobs and manifests that are not in their repository.
	Missing bool
	// Quota bounds what repositories have; nil = nothing does.
	Quota Quota
	// Immutable knows the tags that may not move; nil = there are none.
	Immutable Immutable
}

// Quota gives bytes to repositories.
type Quota interface {
	// Reserve takes bytes for what is about to be stored. If it is not stored, release gives them back. The error's class is
	// errs.Forbidden when there are not so many.
	Reserve(ctx context.Context, repo content.Repository, n int64) (release func(), err error)
}

// Immutable knows tags that may not move.
type Immutable interface {
	// Fixed returns those of tags that may not move.
	Fixed(repo content.Repository, tags ...content.Tag) []content.Tag
	// Applies reports whether a repository may have such tags.
	Applies(repo content.Repository) bool
}

// Room reports whether so many bytes more may be stored in a repository, for uploads that have just begun.
func (s *Service) Room(ctx context.Context, repo content.Repository, n int64) error {
	if s.Quota == nil {
		return nil
	}
	release, err := s.Quota.Reserve(ctx, repo, n)
	if err == nil {
		release()
	}
	return err
}

// reserveBlob reserves nothing for a blob that the repository has.
func (s *Service) reserveBlob(ctx context.Context, repo content.Repository, d content.Digest, n int64) (func(), error) {
	if s.Quota == nil {
		return func() {}, nil
	}
	if _, err := s.Metadata.Link(ctx, repo, d); err == nil {
		return func() {}, nil
	}
	return s.Quota.Reserve(ctx, repo, n)
}

// OpenBlob opens a blob of a repository and returns its size in bytes. The caller closes it.
func (s *Service) OpenBlob(ctx context.Context, repo content.Repository, d content.Digest) (io.ReadSeekCloser, int64, error) {
	if _, err := s.Metadata.Link(ctx, repo, d); err != nil {
		return nil, 0, err
	}
	return s.Blobs.Open(ctx, d)
}

// redirector is a store of blobs from which clients can read themselves.
type redirector interface {
	Redirect(ctx context.Context, d content.Digest) (string, error)
}

// Redirect returns an address at which the blob of a repository can be read for a time; "" when the store has none.
func (s *Service) Redirect(ctx context.Context, repo content.Repository, d content.Digest) (string, error) {
	r, ok := s.Blobs.(redirector)
	if !ok {
		return "", nil
	}
	if _, err := s.Metadata.Link(ctx, repo, d); err != nil {
		return "", err
	}
	return r.Redirect(ctx, d)
}

// StatBlob returns the size of a blob of a repository. It does not count a blob whose bytes are gone, so that clients push it again.
// The blob is kept for the grace time.
func (s *Service) StatBlob(ctx context.Context, repo content.Repository, d content.Digest) (int64, error) {
	if err := s.Metadata.Touch(ctx, repo, d); err != nil {
		return 0, err
	}
	l, err := s.Metadata.Link(ctx, repo, d)
	if err != nil {
		return 0, err
	}
	size, err := s.Blobs.Stat(ctx, d)
	if err == nil && size != l.Size {
		err = errs.New(errs.NotFound, "blob %s is damaged", d)
	}
	return size, err
}

// Begin starts an upload. The caller closes it.
func (s *Service) Begin(ctx context.Context, repo content.Repository, owner string, a content.Algorithm) (blobs.Upload, error) {
	return s.Blobs.Begin(ctx, blobs.Session{ID: blobs.NewID(), Repository: repo, Owner: owner, Algorithm: a, Started: time.Now().UTC().Truncate(time.Second)})
}

const (
	// resumeWait is for a request that has not noticed yet that its client is gone, or was of a replica that died.
	resumeWait = 25 * time.Second
	resumePoll = 20 * time.Millisecond
	resumeMost = 500 * time.Millisecond
)

// Resume returns an upload of a repository, and waits for another request that holds it. The error's class is errs.NotFound when it
// belongs to another repository or another owner. The caller closes it.
func (s *Service) Resume(ctx context.Context, repo content.Repository, owner, id string) (blobs.Upload, error) {
	deadline := time.Now().Add(resumeWait)
	for pause := resumePoll; ; pause = min(2*pause, resumeMost) {
		u, err := s.Blobs.Resume(ctx, id)
		if err == nil {
			if session := u.Session(); session.Repository != repo || session.Owner != owner {
				return nil, errors.Join(errs.New(errs.NotFound, "upload %q does not exist", id), u.Close())
			}
			return u, nil
		}
		if !errors.Is(err, errs.Conflict) || time.Now().After(deadline) {
			return nil, err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// Finish stores the bytes of an upload and links them.
func (s *Service) Finish(ctx context.Context, u blobs.Upload, d content.Digest) error {
	held, release, err := s.Metadata.Lock(ctx, d)
	if err != nil {
		return err
	}
	defer release()
	giveBack, err := s.reserveBlob(held, u.Session().Repository, d, u.Offset())
	if err != nil {
		return errors.Join(err, u.Cancel(held))
	}
	size, err := u.Store(held, d)
	if err == nil {
		err = s.Metadata.PutLink(held, metadata.Link{Repository: u.Session().Repository, Digest: d, Size: size})
	}
	if err != nil {
		giveBack()
	}
	return err
}

// Adopt links a blob whose bytes are here. The error's class is errs.NotFound when they are not.
func (s *Service) Adopt(ctx context.Context, repo content.Repository, d content.Digest) error {
	held, release, err := s.Metadata.Lock(ctx, d)
	if err != nil {
		return err
	}
	defer release()
	size, err := s.Blobs.Stat(held, d)
	if err != nil {
		return err
	}
	return s.Metadata.PutLink(held, metadata.Link{Repository: repo, Digest: d, Size: size})
}

// Drop takes a blob from a repository, and removes its bytes when no other one links them.
func (s *Service) Drop(ctx context.Context, repo content.Repository, d content.Digest) error {
	if err := s.Metadata.DeleteLink(ctx, repo, d); err != nil && !errors.Is(err, errs.NotFound) {
		return err
	}
	held, release, err := s.Metadata.Lock(ctx, d)
	if err != nil {
		return err
	}
	defer release()
	holders, err := s.Metadata.Holders(held, d, "", 1)
	if err != nil || len(holders) > 0 {
		return err
	}
	return s.Blobs.Remove(held, d)
}

const holdersPage = 100

// Mount links a blob of another repository. Without from it takes any repository that may allows. The error's class is
// errs.NotFound when there is none.
func (s *Service) Mount(ctx context.Context, from, to content.Repository, d content.Digest, may func(content.Repository) bool) error {
	if from != "" {
		if !may(from) {
			return errs.New(errs.NotFound, "blob %s is not in repository %s", d, from)
		}
		return s.mount(ctx, from, to, d)
	}
	for after := content.Repository(""); ; {
		holders, err := s.Metadata.Holders(ctx, d, after, holdersPage)
		if err != nil {
			return err
		}
		for _, r := range holders {
			if !may(r) {
				continue
			}
			if err := s.mount(ctx, r, to, d); !errors.Is(err, errs.NotFound) {
				return err
			}
		}
		if len(holders) < holdersPage {
			return errs.New(errs.NotFound, "blob %s is not in a repository that can be read", d)
		}
		after = holders[len(holders)-1]
	}
}

func (s *Service) mount(ctx context.Context, from, to content.Repository, d content.Digest) error {
	if s.Quota == nil {
		return s.Metadata.Mount(ctx, from, to, d)
	}
	l, err := s.Metadata.Link(ctx, from, d)
	if err != nil {
		return err
	}
	giveBack, err := s.reserveBlob(ctx, to, d, l.Size)
	if err != nil {
		return err
	}
	if err = s.Metadata.Mount(ctx, from, to, d); err != nil {
		giveBack()
	}
	return err
}

// DeleteTag removes a tag that may be removed. The error's class is errs.Conflict for one that may not move.
func (s *Service) DeleteTag(ctx context.Context, repo content.Repository, tag content.Tag, c metadata.Condition) error {
	if s.Immutable != nil && len(s.Immutable.Fixed(repo, tag)) > 0 {
		return immutable(repo, tag)
	}
	return s.Metadata.DeleteTag(ctx, repo, tag, c)
}

func immutable(repo content.Repository, tag content.Tag) error {
	return errs.New(errs.Conflict, "tag %s of repository %s is immutable", tag, repo)
}

// DeleteManifest removes a manifest and its tags, unless one of them may not move.
func (s *Service) DeleteManifest(ctx context.Context, repo content.Repository, d content.Digest) error {
	if err := s.checkTags(ctx, repo, func(t metadata.Tag) bool { return t.Digest == d }); err != nil {
		return err
	}
	return s.Metadata.DeleteManifest(ctx, repo, d)
}

// DeleteRepository removes a repository, unless it has tags that may not move.
func (s *Service) DeleteRepository(ctx context.Context, repo content.Repository) error {
	if err := s.checkTags(ctx, repo, func(metadata.Tag) bool { return true }); err != nil {
		return err
	}
	return s.Metadata.DeleteRepository(ctx, repo)
}

const tagsPage = 1000

// checkTags refuses to remove those of the tags that are in the way which may not move.
func (s *Service) checkTags(ctx context.Context, repo content.Repository, inTheWay func(metadata.Tag) bool) error {
	if s.Immutable == nil || !s.Immutable.Applies(repo) {
		return nil
	}
	for after := content.Tag(""); ; {
		tags, err := s.Metadata.Tags(ctx, repo, after, tagsPage)
		if err != nil {
			return err
		}
		for _, name := range s.Immutable.Fixed(repo, tags...) {
			t, err := s.Metadata.Tag(ctx, repo, name)
			if err == nil && inTheWay(t) {
				return immutable(repo, name)
			}
			if err != nil && !errors.Is(err, errs.NotFound) {
				return err
			}
		}
		if len(tags) < tagsPage {
			return nil
		}
		after = tags[len(tags)-1]
	}
}

// Push is a manifest to store.
type Push struct {
	Repository  content.Repository
	Digest      content.Digest // "" = sha256 of the payload
	ContentType string
	Payload     []byte
	Tags        []content.Tag
	Condition   metadata.Condition
}

// PutManifest stores a manifest and returns its digest and what it is. The error's class is errs.Invalid when the manifest is not
// valid, and a *DigestError when it has another digest; see metadata.Writer for further ones.
func (s *Service) PutManifest(ctx context.Context, p Push) (content.Digest, *content.Manifest, error) {
	want := p.Digest
	if want == "" {
		want = content.SHA256.Of(p.Payload)
	} else if got := want.Algorithm().Of(p.Payload); got != want {
		return "", nil, &DigestError{Want: want, Got: got}
	}
	m, err := content.ParseManifest(p.Payload, p.ContentType)
	if err != nil {
		return "", nil, err
	}
	w := metadata.Write{
		Repository: p.Repository, Digest: want, Payload: p.Payload, Parsed: m, Tags: p.Tags, Condition: p.Condition, Missing: s.Missing,
	}
	if s.Immutable != nil {
		w.Fixed = s.Immutable.Fixed(p.Repository, p.Tags...)
	}
	giveBack := func() {}
	if s.Quota != nil {
		if _, err := s.Metadata.Manifest(ctx, p.Repository, want); err != nil {
			if giveBack, err = s.Quota.Reserve(ctx, p.Repository, int64(len(p.Payload))); err != nil {
				return "", nil, err
			}
		}
	}
	if err = s.Metadata.PutManifest(ctx, w); err != nil {
		giveBack()
	}
	return want, m, err
}

// DigestError says that content has another digest than its client said. Its class is errs.Invalid.
type DigestError struct{ Want, Got content.Digest }

func (e *DigestError) Error() string {
	return "content has digest " + string(e.Got) + ", not " + string(e.Want)
}

// Is reports whether target is errs.Invalid.
func (e *DigestError) Is(target error) bool { return target == errs.Invalid }

// Manifest returns a manifest by its digest or its tag, with its bytes. The manifest is kept for the grace time.
func (s *Service) Manifest(ctx context.Context, repo content.Repository, d content.Digest, tag content.Tag) (metadata.Manifest, []byte, error) {
	if tag != "" {
		t, err := s.Metadata.Tag(ctx, repo, tag)
		if err != nil {
			return metadata.Manifest{}, nil, err
		}
		d = t.Digest
	}
	if err := s.Metadata.Touch(ctx, repo, d); err != nil {
		return metadata.Manifest{}, nil, err
	}
	return s.Metadata.Payload(ctx, repo, d)
}
