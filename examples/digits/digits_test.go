package digits

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
	"time"
)

func TestLoad(t *testing.T) {
	x, y, err := Load()
	if err != nil || len(x) != Images*Features || len(y) != Images {
		t.Fatal(len(x), len(y), err)
	}
	sum, count := 0.0, [Classes]int{}
	for _, v := range x {
		if v < 0 || v > 1 {
			t.Fatalf("grey value %v", v)
		}
		sum += v * 16
	}
	for _, d := range y {
		count[d]++
	}
	// As scikit-learn's own description of the data has it.
	if sum != 561718 || count != [Classes]int{178, 182, 177, 183, 181, 182, 181, 179, 174, 180} {
		t.Errorf("sum %v, labels %v", sum, count)
	}
}

// python finds an interpreter with numpy: the one that `make setup` made, or the PATH's.
func python(t *testing.T) string {
	t.Helper()
	for _, p := range []string{os.Getenv("LAUNCHER_TEST_PYTHON"), "../../.venv/bin/python", "python3"} {
		if path, err := exec.LookPath(p); err == nil && exec.Command(path, "-c", "import numpy").Run() == nil {
			if abs, err := filepath.Abs(path); err == nil {
				return abs
			}
		}
	}
	t.Skip("SKIP: there is no python3 with numpy; make setup installs one")
	return ""
}

// script runs one of the programs by plain python, outside any run.
func script(t *testing.T, args ...string) string {
	t.Helper()
	sources, _ := filepath.Glob("*.py")
	for _, f := range sources { // go test must know that its result depends on them
		if _, err := os.ReadFile(f); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, python(t), args...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir(), "OMP_NUM_THREADS=1", "PYTHONDONTWRITEBYTECODE=1"}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %v\n%s%s", args, err, out, &stderr)
	}
	return string(out)
}

func number(t *testing.T, out, name string) float64 {
	t.Helper()
	m := regexp.MustCompile(`(?m)^.*\b`+name+` ([0-9.]+)`).FindAllStringSubmatch(out, -1)
	if m == nil {
		t.Fatalf("no %s in:\n%s", name, out)
	}
	v, err := strconv.ParseFloat(m[len(m)-1][1], 64)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestTrainAlone(t *testing.T) {
	out := script(t, "train.py")
	if v := number(t, out, "objective"); v < 0.26186454 || v > 0.26186456 {
		t.Errorf("objective %v", v)
	}
	if v := number(t, out, "accuracy"); v != 0.978854 {
		t.Errorf("accuracy %v", v)
	}
}

// TestTrainWeights runs train_test.py: the same weights at 1 to 4 ranks and after a restart.
func TestTrainWeights(t *testing.T) { script(t, "-m", "unittest", "train_test") }

func TestMLPAlone(t *testing.T) {
	out := script(t, "mlp.py", "--lr", "0.1", "--hidden", "32")
	if v := number(t, out, "error"); v > 0.06 {
		t.Errorf("error %v", v)
	}
	if bad := number(t, script(t, "mlp.py", "--lr", "0.0001", "--epochs", "1"), "error"); bad < 0.3 {
		t.Errorf("a bad learning rate does as well: %v", bad)
	}
}
