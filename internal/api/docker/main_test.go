package docker

import (
	"testing"

	"ply/test/leak"
)

func TestMain(m *testing.M) { leak.Main(m) }
