package main

import (
	"os"
	"path/filepath"
	"testing"

	"launcher/wire"
)

// TestOpensSockets: a plain torch program is known by what it says.
func TestOpensSockets(t *testing.T) {
	dir := t.TempDir()
	for name, c := range map[string]struct {
		text string
		want bool
	}{
		"env.py":    {"import torch.distributed as dist\ndist.init_process_group('gloo', init_method='env://')\n", true},
		"space.py":  {"  init_process_group (\n", true},
		"accel.py":  {"from accelerate import Accelerator\n", true},
		"numpy.py":  {"import launcher.collective as c\n# no process group is made\n", false},
		"import.py": {"import torch.distributed\n", false},
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		s := wire.JobSpec{Dir: dir, Ranks: 2, Command: []string{"python3", "-u", name, "--data", "other.py"}}
		if got := opensSockets(&s); got != c.want {
			t.Errorf("%s opens sockets: %t", name, got)
		}
		if s.Ranks = 1; opensSockets(&s) {
			t.Errorf("%s alone opens sockets to others", name)
		}
	}
	for _, cmd := range [][]string{nil, {"python3"}, {"python3", "none.py"}, {"./env"}} {
		if opensSockets(&wire.JobSpec{Dir: dir, Ranks: 2, Command: cmd}) {
			t.Errorf("%q opens sockets", cmd)
		}
	}
}
