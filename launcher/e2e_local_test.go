package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"launcher/internal/testkit"
)

// TestPrivateCluster: the cluster of a program is gone when the program lets go of it,
// when its keeper is told to end, and when its keeper is killed.
func TestPrivateCluster(t *testing.T) {
	if testing.Short() {
		t.Skip("starts clusters")
	}
	h := testkit.New(t)
	for _, c := range []struct {
		name string
		end  func(*exec.Cmd, io.Closer) error
		code int
	}{
		{"let go of", func(_ *exec.Cmd, in io.Closer) error { return in.Close() }, 0},
		{"told to end", func(c *exec.Cmd, _ io.Closer) error { return c.Process.Signal(syscall.SIGTERM) }, 0},
		{"killed", func(c *exec.Cmd, _ io.Closer) error { return c.Process.Kill() }, -1},
	} {
		t.Run(c.name, func(t *testing.T) {
			cmd := h.Cmd(t.Context(), "local", "--cpus", "1")
			in, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			line, err := bufio.NewReader(out).ReadString('\n')
			var got struct{ Socket, Cluster, Home, Head string }
			if err != nil || json.Unmarshal([]byte(line), &got) != nil {
				t.Fatalf("%q %v", line, err)
			}
			for _, at := range []string{got.Socket, got.Head} {
				if st, err := os.Stat(at); err != nil || st.Mode().Type() != os.ModeSocket {
					t.Errorf("%s: %v", at, err)
				}
			}
			// The commands find it, since nothing else is up.
			if s := h.OK("status"); !strings.Contains(s, got.Cluster) {
				t.Errorf("status: %q", s)
			}
			if err := c.end(cmd, in); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait()
			if code := cmd.ProcessState.ExitCode(); code != c.code {
				t.Errorf("exit code %d, want %d", code, c.code)
			}
			testkit.Eventually(t, privateGrace+testkit.Bound, func() string {
				if left := h.Processes(); len(left) > 0 {
					return fmt.Sprint(left)
				}
				return ""
			})
			if _, err := os.Stat(got.Home); c.code == 0 && !os.IsNotExist(err) {
				t.Errorf("%s is left: %v", got.Home, err)
			}
		})
	}
	// What the killed keeper left is removed by a later one.
	cmd := h.Cmd(t.Context(), "local")
	in, _ := cmd.StdinPipe()
	out, _ := cmd.StdoutPipe()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, testkit.Bound, func() string {
		if homes, _ := filepath.Glob(filepath.Join(h.Dir, "local", "*")); len(homes) != 1 {
			return strings.Join(homes, " ")
		}
		return ""
	})
	in.Close()
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}
