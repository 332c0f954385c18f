package overlay2

import (
	"testing"

	"ply/internal/record"
	"ply/internal/record/recordtest"
)

// The form in which a variant is described. The files of builds before the first release decode too.
func TestGoldenVariant(t *testing.T) {
	v := variantMeta{Empty: true}
	recordtest.Filled(t, v)
	data, err := record.Marshal(variantVersion, v)
	if err != nil {
		t.Fatal(err)
	}
	recordtest.Golden(t, "variant.v1.json", data)
	recordtest.Decodes(t, "variant.v1.json", variantVersion, v)
	recordtest.Decodes(t, "variant.unsigned.json", variantVersion, v)
}
