package main

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"launcher/internal/testkit"
)

// reach uses a terminal on a node, and copies to it and from it; dir is one that the node
// sees as we do.
func reach(t *testing.T, h *testkit.Home, node, dir string) {
	t.Helper()
	c := h.Cmd(t.Context(), "ssh", node, "--", "sh", "-c", "cat; echo err >&2; exit 3")
	c.Stdin = strings.NewReader("what goes in\n")
	if r := testkit.Finish(c); r.Code != 3 || r.Out != "what goes in\n" || !strings.Contains(r.Err, "err\n") {
		t.Errorf("a command with pipes: %s", r)
	}
	if r := h.Run("ssh", node, "--", "no-such-command"); r.Code != 127 || !strings.Contains(r.Err, "no-such-command") {
		t.Errorf("a command that is not there: %s", r)
	}
	tty := h.StartTTY("ssh", node, "--", "sh")
	tty.Type("test -t 0 && test -t 1 && echo termi''nal")
	tty.Expect("terminal")
	tty.Type("sh -c 'echo be\"\"gun; exec sleep 1000'")
	tty.Expect("begun") // until then a shell would take the signal for itself
	tty.Type("\x03")    // goes there, not to us
	tty.Type("echo st''ill; exit 5")
	tty.Expect("still")
	if r := tty.Wait(); r.Code != 5 {
		t.Errorf("the terminal's end: %s", r)
	}
	// What was copied there and back is what it was.
	src := filepath.Join(dir, "src")
	big := bytes.Repeat([]byte("0123456789abcdef"), 1<<20)
	for name, data := range map[string][]byte{"a": []byte("first"), "sub/big file": big, "sub/empty": nil} {
		p := filepath.Join(src, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	check(os.Chmod(filepath.Join(src, "a"), 0o755))
	check(os.Chmod(filepath.Join(src, "sub/empty"), 0o440))
	check(os.Symlink("a", filepath.Join(src, "link")))
	check(os.Mkdir(filepath.Join(src, "closed"), 0o500))
	there, back := filepath.Join(dir, "there"), filepath.Join(dir, "back")
	h.OK("cp", src, node+":"+there)
	h.OK("cp", node+":"+there, back)
	want := listing(t, src)
	for _, d := range []string{there, back} {
		if got := listing(t, d); got != want {
			t.Errorf("copied:\n%swanted:\n%s", got, want)
		}
	}
	// Into directories, several at once, over what is there.
	check(os.Mkdir(filepath.Join(dir, "in"), 0o755))
	h.OK("cp", filepath.Join(src, "a"), filepath.Join(src, "sub"), node+":"+filepath.Join(dir, "in"))
	h.OK("cp", filepath.Join(src, "a"), node+":"+filepath.Join(dir, "in", "a"))
	if got := listing(t, filepath.Join(dir, "in")); !strings.Contains(got, "a -rwxr-xr-x") || !strings.Contains(got, "sub/big file ") {
		t.Errorf("into a directory: %s", got)
	}
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{node + ":" + dir + "/none", dir}, "node " + node + ": there is no " + dir + "/none"},
		{[]string{src, node + ":" + dir + "/none/x"}, "there is no " + dir + "/none"},
		{[]string{filepath.Join(src, "a"), filepath.Join(src, "sub"), node + ":" + filepath.Join(dir, "new")}, "there is no directory " + dir + "/new"},
		{[]string{dir + "/none", node + ":" + dir}, "error: there is no " + dir + "/none"},
		{[]string{src, dir}, "one side of a copy is on a node"},
		{[]string{src, "nowhere:" + dir}, "there is no node nowhere"},
	} {
		if r := h.Run(append([]string{"cp"}, c.args...)...); r.Code != 125 || !strings.Contains(r.Err, c.want) {
			t.Errorf("cp %q: %s; wanted %q", c.args, r, c.want)
		}
	}
	// A process ends with the client.
	r := h.Start("ssh", node, "--", "sh", "-c", "echo $$; exec sleep 1000")
	pid := 0
	testkit.Eventually(t, testkit.Bound, func() string {
		if _, err := fmt.Sscan(r.Out(), &pid); err != nil {
			return "the command has not begun: " + r.Err()
		}
		return ""
	})
	_ = r.Cmd.Process.Kill()
	testkit.Eventually(t, testkit.Bound, func() string {
		if syscall.Kill(pid, 0) == nil {
			return "the command runs on without its client"
		}
		return ""
	})
}

// listing says what is in a directory: names, modes, and contents.
func listing(t *testing.T, dir string) string {
	t.Helper()
	var out strings.Builder
	err := filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, p)
		fmt.Fprintf(&out, "%s %s", rel, fi.Mode())
		switch {
		case fi.Mode().IsRegular():
			data, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			fmt.Fprintf(&out, " %d %x %d", len(data), sha256.Sum256(data), fi.ModTime().UnixNano())
		case fi.Mode().Type() == os.ModeSymlink:
			to, _ := os.Readlink(p)
			fmt.Fprint(&out, " ", to)
		}
		fmt.Fprintln(&out)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// TestReach: ssh and cp on a local node.
func TestReach(t *testing.T) {
	h := testkit.New(t)
	h.Write("l.toml", "version = 1\nname = \"l\"\n[[pool]]\nname = \"local\"\nbackend = \"local\"\nnodes = 1\n")
	h.OK("up", "l.toml")
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	reach(t, h, "local-0", dir)
	h.OK("down", "l")
}

// TestSSHReach: the same on a host that has no network but its ssh connection.
func TestSSHReach(t *testing.T) {
	l := testkit.SSHD(t)
	h := testkit.New(t)
	a := l.Start("a", testkit.ServerOptions{NoSFTP: true, Lines: []string{noNetwork(t), "MaxSessions 1", "AllowTcpForwarding no", "AllowStreamLocalForwarding no", "PermitTTY no"}})
	h.Write("boxes.toml", sshSpec(l, fmt.Sprintf("%q", hostPort(a)), ""))
	h.OK("up", "boxes.toml")
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	reach(t, h, "box-0", dir)
	if out := h.OK("ssh", "box-0", "--", "sh", "-c", "pwd; tail -n +2 /proc/net/route | wc -l"); out != a.Home+"\n0\n" {
		t.Errorf("where it is: %q", out)
	}
	h.Write("x", "in the home")
	h.OK("cp", "x", "box-0:~/")
	if b, err := os.ReadFile(filepath.Join(a.Home, "x")); err != nil || string(b) != "in the home" {
		t.Errorf("a copy to the home: %q %v", b, err)
	}
	h.OK("down", "boxes")
}
