package main

import (
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"launcher/internal/testkit"
)

// lockedKey makes a key with the passphrase "open sesame" that the servers take.
func lockedKey(t *testing.T, l *testkit.Lab, servers ...*testkit.Server) string {
	t.Helper()
	key := testkit.NewKey(t, "ed25519")
	block, err := ssh.MarshalPrivateKeyWithPassphrase(key, "", []byte("open sesame"))
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range servers {
		s.Authorize(string(ssh.MarshalAuthorizedKey(signer.PublicKey())))
	}
	path := filepath.Join(l.Dir, "locked")
	if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// askingSpec is a spec of hosts that this machine has never seen, and of the locked key.
func askingSpec(l *testkit.Lab, where, key string, servers ...*testkit.Server) string {
	var hosts []string
	for _, s := range servers {
		hosts = append(hosts, fmt.Sprintf("%q", hostPort(s)))
	}
	spec := sshSpec(l, strings.Join(hosts, ", "), fmt.Sprintf("min = %d", len(hosts)))
	spec = strings.Replace(spec, `where = "here"`, fmt.Sprintf("where = %q", where), 1)
	spec = strings.ReplaceAll(spec, fmt.Sprintf("ssh_config = %q", l.Config), `ssh_config = "/dev/null"`)
	return strings.ReplaceAll(spec, fmt.Sprintf("identity = %q", l.Key), fmt.Sprintf("identity = %q", key))
}

// TestSSHAsks: up asks at its terminal for host keys and, once, for a key's passphrase.
func TestSSHAsks(t *testing.T) {
	for _, where := range []string{"here", "pool:box"} {
		t.Run(where, func(t *testing.T) { testAsks(t, where) })
	}
}

func testAsks(t *testing.T, where string) {
	l := testkit.SSHD(t)
	h := testkit.New(t)
	h.Env = append(h.Env, "SSH_AUTH_SOCK=")
	a := l.Start("a", testkit.ServerOptions{Unknown: true})
	b := l.Start("b", testkit.ServerOptions{Unknown: true})
	h.Write("boxes.toml", askingSpec(l, where, lockedKey(t, l, a, b), a, b))
	up := h.StartTTY("up", "boxes.toml")
	keys, phrases := 0, 0
	for keys < 2 || phrases < 2 { // in the order in which the hosts answer
		switch up.Expect("(yes/no/fingerprint)? ", "Passphrase of ", "error:") {
		case 0:
			keys++
			up.Type("yes")
		case 1:
			if phrases++; phrases == 1 {
				up.Type("a wrong one")
			} else {
				up.Type("open sesame")
			}
		case 2:
			t.Fatalf("up: %s", up.Out())
		}
	}
	up.Expect("cluster boxes is up: 2 nodes")
	if r := up.Wait(); r.Code != 0 || strings.Contains(r.Out, "sesame") || strings.Count(r.Out, "Passphrase of ") != 2 {
		t.Errorf("up: %s", r)
	}
	known, err := os.ReadFile(l.KnownHosts)
	if err != nil || strings.Count(string(known), "ssh-ed25519") != 2 {
		t.Errorf("known_hosts: %q, %v", known, err)
	}
	h.OK("down", "boxes")
}

// TestSSHCannotAsk: without a terminal up says what must be done; the flag takes new keys,
// and an up in a terminal goes on where the first could not.
func TestSSHCannotAsk(t *testing.T) {
	for _, where := range []string{"here", "pool:box"} {
		t.Run(where, func(t *testing.T) { testCannotAsk(t, where) })
	}
}

func testCannotAsk(t *testing.T, where string) {
	l := testkit.SSHD(t)
	h := testkit.New(t)
	h.Env = append(h.Env, "SSH_AUTH_SOCK=")
	a := l.Start("a", testkit.ServerOptions{Unknown: true})
	h.Write("boxes.toml", askingSpec(l, where, lockedKey(t, l, a), a))
	h.Fails(125, []string{"is in no known_hosts", "--accept-new-host-keys"}, "up", "boxes.toml")
	if out := h.Fails(125, []string{"needs a passphrase", "ssh-add"}, "up", "--accept-new-host-keys", "boxes.toml"); strings.Contains(out.Err, "known_hosts") {
		t.Errorf("the new key was not taken: %s", out)
	}
	up := h.StartTTY("up", "boxes.toml")
	up.Expect("Passphrase of ")
	up.Signal(os.Interrupt) // Ctrl-C leaves; nothing waits for an answer
	if r := up.Wait(); r.Code == 0 {
		t.Errorf("up that was left: %s", r)
	}
	up = h.StartTTY("up", "boxes.toml")
	up.Expect("Passphrase of ")
	up.Type("open sesame")
	up.Expect("cluster boxes is up: 1 node")
	if r := up.Wait(); r.Code != 0 {
		t.Errorf("up: %s", r)
	}
	h.OK("down", "boxes")
}

// TestRootSSHKerberos: up with a Kerberos ticket, by the machine's own ssh, which is asked
// for when there is none.
func TestRootSSHKerberos(t *testing.T) {
	l := testkit.SSHD(t)
	k := l.Kerberos()
	h := testkit.New(t)
	h.Env = append(append(h.Env, k.Env...), "SSH_AUTH_SOCK=")
	s := k.Start("k", testkit.ServerOptions{})
	spec := strings.Replace(sshSpec(l, `"k"`, `transport = "system"`), fmt.Sprintf("identity = %q\n", l.Key), "", 1)
	h.Write("boxes.toml", spec)
	if r := h.Run("up", "boxes.toml"); r.Code == 0 || !strings.Contains(r.Err+r.Out, "gssapi-with-mic") {
		t.Errorf("up without a ticket: %s", r)
	}
	k.Login()
	if out := h.OK("up", "boxes.toml"); !strings.Contains(out, "cluster boxes is up: 1 node") {
		t.Errorf("up: %q", out)
	}
	if out := h.OK("run", "--", "echo", "by ticket"); out != "by ticket\n" {
		t.Errorf("run: %q", out)
	}
	h.OK("down", "boxes")
	if left := leftOn(t, s); len(left) != 1 || !strings.HasPrefix(left[0], "bin/") {
		t.Errorf("left on the host: %q", left)
	}
}
