package configs

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestHostileFiles holds that no file, however made, takes long: the libraries need time
// that grows with the square of depth or size, minutes for some of these.
func TestHostileFiles(t *testing.T) {
	r, n := strings.Repeat, 100_000
	many := &strings.Builder{}
	for i := range n / 5 {
		fmt.Fprintf(many, "k%d = 1\n", i)
	}
	for _, c := range []struct{ name, text, want string }{
		{"lists.toml", "version = 1\na = " + r("[", n) + r("]", n), ":2: not TOML that can be read: nested too deep"},
		{"tables.toml", "version = 1\na = " + r("{a=", n) + "1" + r("}", n), ":2: not TOML that can be read: nested too deep"},
		{"dots.toml", "version = 1\n\na" + r(" . a", n) + " = 1\n", ":3: not TOML that can be read: nested too deep"},
		{"header.toml", "[a" + r(".a", n) + "]\n", ":1: not TOML that can be read: nested too deep"},
		{"keys.toml", "version = 1\n" + many.String(), fmt.Sprintf("and %d more faults", n/5+1-maxFaults)},
		{"pools.toml", "version = 1\n" + r("[[pool]]\n", 257), "and 413 more faults"},
		{"flow.yaml", "a: " + r("[", 30_000) + r("]", 30_000), ":1: not YAML: nested too deep"},
		{"dashes.yaml", "a:\n  " + r("- ", n) + "1\n", ":1: not YAML: it is larger than 64 KiB; write"},
		{"latin1.yaml", "a: 1\nb: \xe9\n", ":2: not YAML: it is not UTF-8"},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), c.name)
			if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
				t.Fatal(err)
			}
			err := within(t, func() error {
				if filepath.Ext(path) == ".yaml" {
					_, err := LoadJob(path)
					return err
				}
				_, err := LoadCluster(path)
				return err
			})
			if err == nil {
				t.Fatal("accepted")
			}
			lines := strings.Split(err.Error(), "\n")
			if !strings.Contains(err.Error(), c.want) || len(lines) > maxFaults+1 {
				t.Errorf("%d lines, the last %q, want %q", len(lines), lines[len(lines)-1], c.want)
			}
		})
	}
}

func within(t *testing.T, f func() error) error {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case err := <-done:
		return err
	case <-time.After(30 * time.Second):
		t.Fatal("no answer in 30 s")
		return nil
	}
}

// TestDepthCounts holds that what stands in strings and comments is not taken for depth.
func TestDepthCounts(t *testing.T) {
	deep := strings.Repeat("[{a.", 100)
	for _, text := range []string{
		`a = "` + deep + "\"\n", "a = '" + deep + "'\n", "# " + deep + "\n", "a = \"\"\"\n" + deep + "\"\n\"\"\"\n", "a = '''" + deep + "'\n'''\n",
		`a = "\"` + deep + "\"\n", strings.Repeat("a = [1.5, 2.5]\n", 100),
	} {
		if line := tooDeep(text, true); line != 0 {
			t.Errorf("line %d of %.20q...", line, text)
		}
	}
	if line := tooDeep("a = \"\"\"x\n\n\"\"\"\n"+deep, true); line != 4 {
		t.Errorf("after a string of three lines: line %d, want 4", line)
	}
	if line := tooDeep("description: wait"+strings.Repeat(".", 100), false); line != 0 {
		t.Errorf("dots in YAML: line %d", line)
	}
}

// TestYAMLByteOrderMark holds that a file of an editor on Windows reads like another.
func TestYAMLByteOrderMark(t *testing.T) {
	text := "\ufeffprogram: a.py\r\nmethod: grid\r\nparameters:\r\n  a: {value: 1}\r\n"
	if j, err := ParseWandb("s.yaml", "/d/s.yaml", []byte(text)); err != nil || j.Sweep.Program != "a.py" {
		t.Errorf("%v %v", j, err)
	}
}

// TestPipes holds that a pipe is read, and one without a writer not waited for.
func TestPipes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lab.toml")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	err := within(t, func() error { _, err := LoadCluster(path); return err })
	if err == nil || !strings.Contains(err.Error(), "version: missing") {
		t.Errorf("a pipe without a writer: %v", err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := w.WriteString("version = 1" + okPool); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if err := within(t, func() error { _, err := LoadCluster(fmt.Sprintf("/dev/fd/%d", r.Fd())); return err }); err != nil {
		t.Errorf("a pipe: %v", err)
	}
}
