package metadata

import (
	"context"
	"errors"

	"ply/internal/errs"
	"ply/internal/registry/content"
)

const page = 1000 // tags read at once

// EachTag calls visit for the name of every tag of a repository, in the order of bytes, and ends with the first error of visit. It holds no
// transaction: tags may come and go meanwhile, and visit may delete them. A repository that does not exist has no tags.
func EachTag(ctx context.Context, r Reader, repo content.Repository, visit func(content.Tag) error) error {
	for after := content.Tag(""); ; {
		tags, err := r.Tags(ctx, repo, after, page)
		if errors.Is(err, errs.NotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		for _, tag := range tags {
			if err := visit(tag); err != nil {
				return err
			}
		}
		if len(tags) < page {
			return nil
		}
		after = tags[len(tags)-1]
	}
}

// EachTarget is EachTag with the manifest that the tag points at. It leaves out a tag that is deleted meanwhile.
func EachTarget(ctx context.Context, r Reader, repo content.Repository, visit func(Tag) error) error {
	return EachTag(ctx, r, repo, func(name content.Tag) error {
		t, err := r.Tag(ctx, repo, name)
		if errors.Is(err, errs.NotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		return visit(t)
	})
}
