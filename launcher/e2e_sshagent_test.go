package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"launcher/internal/testkit"
)

// TestSSHAgent: the key is in an ssh-agent only, and a host behind two others takes nothing
// but its certificate.
func TestSSHAgent(t *testing.T) {
	everySSH(t)
	l := testkit.SSHD(t)
	tool := func(name string, args ...string) {
		t.Helper()
		c := exec.CommandContext(t.Context(), name, args...)
		c.Env = append(os.Environ(), "SSH_AUTH_SOCK="+filepath.Join(l.Dir, "agent"))
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v %s", name, err, out)
		}
	}
	ca := filepath.Join(l.Dir, "ca")
	tool("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", ca)
	tool("ssh-keygen", "-q", "-s", ca, "-I", "test", "-n", l.User, l.Key+".pub")
	l.Start("a", testkit.ServerOptions{})
	l.Start("b", testkit.ServerOptions{Client: []string{"ProxyJump a"}})
	c := l.Start("c", testkit.ServerOptions{Client: []string{"ProxyJump b"},
		Lines: []string{"AuthorizedKeysFile none", fmt.Sprintf("TrustedUserCAKeys %q", ca+".pub")}})
	agent := exec.CommandContext(t.Context(), "ssh-agent", "-D", "-a", filepath.Join(l.Dir, "agent"))
	agent.Cancel = func() error { return agent.Process.Kill() }
	if err := agent.Start(); err != nil {
		t.Skipf("SKIP: no ssh-agent (make setup as root on Debian): %v", err)
	}
	t.Cleanup(func() { _ = agent.Process.Kill(); _ = agent.Wait() })
	testkit.Eventually(t, testkit.Bound, func() string {
		if _, err := os.Stat(filepath.Join(l.Dir, "agent")); err != nil {
			return err.Error()
		}
		return ""
	})
	tool("ssh-add", "-q", l.Key)
	h := testkit.New(t)
	spec := strings.Replace(sshSpec(l, `"c"`, ""), fmt.Sprintf("identity = %q\n", l.Key), "", 1)
	h.Write("boxes.toml", spec)
	if err := os.Remove(l.Key); err != nil {
		t.Fatal(err)
	}
	h.Env = append(h.Env, "SSH_AUTH_SOCK=")
	if r := h.Run("up", "boxes.toml"); r.Code == 0 || !strings.Contains(r.Err, "is not let in") {
		t.Errorf("up without the agent: %s", r)
	}
	h.Run("down", "boxes")
	h.Env[len(h.Env)-1] = "SSH_AUTH_SOCK=" + filepath.Join(l.Dir, "agent")
	if out := h.OK("up", "boxes.toml"); !strings.Contains(out, "cluster boxes is up: 1 node") {
		t.Errorf("up: %q", out)
	}
	if out := h.OK("run", "--", "echo", "by certificate"); out != "by certificate\n" {
		t.Errorf("run: %q", out)
	}
	h.OK("down", "boxes")
	if left := leftOn(t, c); len(left) != 1 || !strings.HasPrefix(left[0], "bin/") {
		t.Errorf("left on the host: %q", left)
	}
}
