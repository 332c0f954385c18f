package direct

import (
	"encoding/json"
	"io"
	"os"

	"ply/internal/errs"
)

// maxSecret is the largest secret, in bytes, as in BuildKit.
const maxSecret = 500 << 10

func (s Secret) read(id string, res *Resources) ([]byte, error) {
	if s.File == "" {
		v, ok := os.LookupEnv(s.Env)
		if !ok {
			return nil, errs.New(errs.NotFound, "secret %s: the variable %s is not set", id, s.Env)
		}
		return []byte(v), nil
	}
	f, err := os.Open(s.File)
	if err != nil {
		return nil, errs.New(errs.Invalid, "secret %s: %v", id, err)
	}
	defer f.Close()
	if err := res.check(f, false); err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(f, maxSecret+1))
	if err == nil && len(b) > maxSecret {
		err = errs.New(errs.Invalid, "secret %s: larger than %d KB", id, maxSecret>>10)
	}
	return b, err
}

func marshal(v any, into *[]byte) (err error) {
	*into, err = json.Marshal(v)
	return err
}
