package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// raySpec is a cluster of two nodes whose python has what programs need.
const raySpec = `version = 1
name = "lab"
[[pool]]
name = "local"
backend = "local"
nodes = 2
python = "PYTHON"
resources = { cpu = 4, memory = "1GiB" }
`

// testPython is an interpreter with numpy and cloudpickle.
func testPython(t *testing.T) string {
	t.Helper()
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	for _, py := range []string{os.Getenv("LAUNCHER_TEST_PYTHON"), filepath.Join(root, ".venv/bin/python"), "python3"} {
		if py == "" || exec.CommandContext(t.Context(), py, "-c", "import numpy, cloudpickle").Run() != nil {
			continue
		}
		if py, err = exec.LookPath(py); err != nil {
			t.Fatal(err)
		}
		return py
	}
	t.Skip("SKIP: there is no Python with numpy and cloudpickle: make setup")
	return ""
}

// TestAsRay: a program that imports ray runs by run --as-ray, and without it does not find
// launcher under that name.
func TestAsRay(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a cluster")
	}
	py := testPython(t)
	h := lab(t, strings.ReplaceAll(raySpec, "PYTHON", py))
	tests, err := filepath.Abs("../python/tests")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"from_ray_program.py", "from_ray_library.py", "ray_util_program.py"} {
		text, err := os.ReadFile(filepath.Join(tests, name))
		if err != nil {
			t.Fatal(err)
		}
		h.Write(name, string(text))
	}
	for _, program := range []string{"from_ray_program.py", "ray_util_program.py"} {
		if out := h.OK("run", "--as-ray", "--time", "3m", "--", "python", program); !strings.HasSuffix(out, "all well\n") {
			t.Error(out)
		}
	}
	if out := h.OK("run", "--as-ray", "--", "python", "-c", "import ray.exceptions as e; print(e.__name__)"); out != "launcher.exceptions\n" {
		t.Error(out)
	}
	if exec.CommandContext(t.Context(), py, "-c", "import ray").Run() != nil { // else another ray is what is found
		h.Fails(1, []string{"No module named 'ray'"}, "run", "--", "python", "from_ray_program.py")
	}
}
