package container

import "log/slog"

// undoer undoes, in reverse order, the steps of a start or create that has failed.
type undoer struct {
	log   *slog.Logger
	steps []undoStep
}

type undoStep struct {
	what string
	do   func() error
}

func (u *undoer) add(what string, do func() error) { u.steps = append(u.steps, undoStep{what, do}) }

// all runs the steps. It logs their errors, because the caller returns the error that made it undo them.
func (u *undoer) all() {
	for i := len(u.steps) - 1; i >= 0; i-- {
		if err := u.steps[i].do(); err != nil {
			u.log.Warn("undo", "what", u.steps[i].what, "err", err)
		}
	}
	u.steps = nil
}
