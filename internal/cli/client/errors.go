package client

import (
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"strings"
	"syscall"

	"ply/internal/wire"
)

// Error is an answer of the engine with an error status.
type Error struct {
	Status  int // HTTP status
	Message string
}

// Error returns the text in docker's form.
func (e *Error) Error() string { return "Error response from daemon: " + e.Message }

// IsNotFound reports whether err is an answer with status 404.
func IsNotFound(err error) bool {
	var e *Error
	return errors.As(err, &e) && e.Status == http.StatusNotFound
}

// IsAbsent reports whether err is an answer that the engine does not have what was asked of it: status 404 or 501.
func IsAbsent(err error) bool {
	var e *Error
	return errors.As(err, &e) && (e.Status == http.StatusNotFound || e.Status == http.StatusNotImplemented)
}

// ConnectError says that no engine could be reached at Host.
type ConnectError struct {
	Host string
	Err  error
}

// Error names the host and the most likely reason.
func (e *ConnectError) Error() string {
	if errors.Is(e.Err, fs.ErrPermission) {
		return "permission denied while trying to connect to the ply daemon socket at " + e.Host + ": " + e.Err.Error()
	}
	return "Cannot connect to the ply daemon at " + e.Host + ". Is the ply daemon running?"
}

// Unwrap returns the error of the dial.
func (e *ConnectError) Unwrap() error { return e.Err }

// Absent reports whether nothing listens at the host: there is no socket, or no process has it open.
func (e *ConnectError) Absent() bool {
	return errors.Is(e.Err, fs.ErrNotExist) || errors.Is(e.Err, syscall.ECONNREFUSED)
}

// checkStatus returns an *Error for an answer with an error status, and closes its body then.
func checkStatus(resp *http.Response) error {
	if resp.StatusCode >= 200 && resp.StatusCode < 300 || resp.StatusCode == http.StatusNotModified {
		return nil
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxError))
	if err != nil {
		return err
	}
	return &Error{Status: resp.StatusCode, Message: errorText(resp, body)}
}

// errorText returns the message of an error answer.
func errorText(resp *http.Response, body []byte) string {
	var m wire.Error
	if strings.HasPrefix(resp.Header.Get("Content-Type"), "application/json") && json.Unmarshal(body, &m) == nil && m.Message != "" {
		return strings.TrimSpace(m.Message)
	}
	if text := strings.TrimSpace(string(body)); text != "" {
		return text
	}
	text := "request returned " + http.StatusText(resp.StatusCode)
	if resp.Request != nil {
		text += " for API route " + resp.Request.Method + " " + resp.Request.URL.Path
	}
	return text
}
