package errs

// OfStatus returns the class of a status of HTTP outside 2xx: what a client that gets it from a server should do. The numbers stand for
// themselves because the shim, which must stay small, has this package but not net/http.
func OfStatus(status int) error {
	switch status {
	case 401:
		return Unauthorized
	case 403:
		return Forbidden
	case 404, 410:
		return NotFound
	case 405, 501:
		return Unimplemented
	case 408, 429: // the client was slow, or asks too often
		return Unavailable
	}
	if status >= 500 {
		return Unavailable
	}
	return Invalid
}
