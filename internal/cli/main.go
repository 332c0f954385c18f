package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"ply/internal/cli/command"
)

// Main runs the command line on the streams of this process and returns its exit code.
func Main(args []string) int {
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	ch := make(chan os.Signal, 3)
	signal.Notify(ch, os.Interrupt, syscall.SIGTERM)
	go func() {
		for n := 0; ; n++ {
			s := <-ch
			cancel(&signalError{s})
			if n == 2 {
				fmt.Fprintln(os.Stderr, "\ngot 3 SIGTERM/SIGINTs, forcefully exiting")
				os.Exit(1) // the third signal ends the process without waiting for the command
			}
		}
	}()
	return Run(ctx, command.New(), args)
}

// Run executes one command line, without the program's name, and returns the exit code.
func Run(ctx context.Context, inv *command.Invocation, args []string) int {
	args = oldTreeFlag(inv.Err, args)
	root := rootFor(inv, args)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	if hint := forgottenRun(root, args); hint != "" {
		err = &command.ExitError{Code: 125, Text: hint}
	}
	code, text := outcome(err)
	if text != "" {
		fmt.Fprintln(inv.Err, text)
	}
	return code
}

// outcome returns the exit code for an error of a command, and the text for stderr.
func outcome(err error) (code int, text string) {
	var ee *command.ExitError
	if errors.As(err, &ee) {
		return ee.Code, ee.Text
	}
	var ue *command.UsageError
	if errors.As(err, &ue) {
		return ue.Code, ue.Error()
	}
	var sig *signalError
	if errors.As(err, &sig) {
		return 128 + sig.number(), ""
	}
	if errors.Is(err, context.Canceled) {
		return 130, ""
	}
	return 1, err.Error()
}

// signalError is the cause of a context that a signal ended.
type signalError struct{ sig os.Signal }

func (e *signalError) Error() string { return e.sig.String() }

func (e *signalError) number() int {
	if n, ok := e.sig.(syscall.Signal); ok {
		return int(n)
	}
	return 1
}
