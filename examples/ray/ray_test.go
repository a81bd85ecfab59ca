// Package ray runs the programs written for Ray, by launcher run --as-ray, and compares what
// they print with what Ray printed.
package ray

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"launcher/internal/testkit"
)

func TestMain(m *testing.M) { os.Exit(testkit.Main(m)) }

func TestAsRay(t *testing.T) {
	py := testkit.Python(t, "cloudpickle", "msgpack", "numpy")
	expected, err := filepath.Glob("expected/*.txt")
	if err != nil || len(expected) < 30 {
		t.Fatalf("%d programs, wanted 30 and more; %v", len(expected), err)
	}
	h := testkit.New(t)
	h.Write("lab.toml", "version = 1\nname = \"lab\"\n[[pool]]\nname = \"local\"\nbackend = \"local\"\nnodes = 1\nresources = { cpu = 4, slot = 2 }\n")
	h.OK("up", "lab.toml")
	defer h.OK("down", "lab")
	for _, file := range expected {
		name := strings.TrimSuffix(filepath.Base(file), ".txt")
		t.Run(name, func(t *testing.T) {
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			program, err := filepath.Abs(name + ".py")
			if err != nil {
				t.Fatal(err)
			}
			if _, err := os.Stat(program); err != nil { // go test must know that its result depends on it
				t.Fatal(err)
			}
			r := h.Run("run", "--as-ray", "--cpus", "0", "--", py, program)
			if strings.Contains(r.Err, "SKIP ") {
				t.Log(r.Err) // a package that only this program needs
				return
			}
			if r.Code != 0 || r.Out != string(want) {
				t.Errorf("wanted\n%s\ngot %s", want, r)
			}
		})
	}
}
