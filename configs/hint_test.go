package configs

import (
	"slices"
	"testing"

	"launcher/internal/errs"
)

// TestHintsForMissingFiles: samples are for files of ours, not for a list of elements.
func TestHintsForMissingFiles(t *testing.T) {
	dir := t.TempDir()
	for name, want := range map[string]string{"lab.toml": "check the path; samples are in configs/", "files.txt": "check the path", "files": "check the path"} {
		_, err := ReadLines(dir + "/" + name)
		if got := errs.HintsOf(err); !slices.Equal(got, []string{want}) {
			t.Errorf("%s: %v, hints %q", name, err, got)
		}
	}
}
