package container

import "log/slog"

// undoer takes back, in reverse order, what a start or create has done so far.
type undoer struct {
	log   *slog.Logger
	steps []undoStep
}

type undoStep struct {
	what string
	do   func() error
}

func (u *undoer) add(what string, do func() error) { u.steps = append(u.steps, undoStep{what, do}) }

// all runs the steps; what fails is logged, because the error that led here is the one to tell.
func (u *undoer) all() {
	for i := len(u.steps) - 1; i >= 0; i-- {
		if err := u.steps[i].do(); err != nil {
			u.log.Warn("undo", "what", u.steps[i].what, "err", err)
		}
	}
	u.steps = nil
}
