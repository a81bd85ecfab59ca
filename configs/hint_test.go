package configs

import (
	"os"
	"slices"
	"testing"

	"launcher/internal/errs"
	"launcher/wire"
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

// TestNoGPUs: gpu = 0 of a pool is none, not what detection finds.
func TestNoGPUs(t *testing.T) {
	path := t.TempDir() + "/lab.toml"
	for text, want := range map[string]int64{"cpu = 2": 0, "cpu = 2\ngpu = 0": wire.NoGPUs, "gpu = 1": wire.Unit} {
		spec := "version = 1\nname = \"lab\"\n[[pool]]\nname = \"p\"\nbackend = \"local\"\n[pool.resources]\n" + text + "\n"
		if err := os.WriteFile(path, []byte(spec), 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := LoadCluster(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := c.Pools[0].Resources.GPU; got != want {
			t.Errorf("%q: gpu %d, want %d", text, got, want)
		}
	}
}
