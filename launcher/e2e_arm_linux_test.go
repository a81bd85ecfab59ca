package main

import (
	"debug/elf"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"launcher/internal/testkit"
)

// TestRootNetARM64: a host of another architecture, whose binary is the real one, beside
// one like this machine.
func TestRootNetARM64(t *testing.T) {
	if os.Getenv("LAUNCHER_TEST_SSH") != "all" {
		t.Skip("SKIP: LAUNCHER_TEST_SSH=all runs what takes long")
	}
	n := testkit.NewNet(t)
	arm, plain := n.Host("arm", testkit.HostOptions{ARM64: true}), n.Host("plain", testkit.HostOptions{})
	h := n.Laptop
	h.Write("boxes.toml", netSpec(n, "here", "box: plain arm"))
	h.Fails(125, []string{"architecture aarch64", "make release"}, "up", "boxes.toml")
	dir := filepath.Join(h.Dir, "cache")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-o", filepath.Join(dir, "launcher-linux-arm64"), ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=arm64")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	h.Write("boxes.toml", strings.Replace(netSpec(n, "here", "box: plain arm"), "min = 2", "min = 1", 1))
	h.OK("up", "boxes.toml")
	// What began the node there was that binary. Whether the node lives is the emulator's
	// matter: qemu before 8 lets no process be a sub-reaper.
	var pools string
	testkit.Eventually(t, 2*testkit.Bound, func() string {
		if pools = h.OK("pools"); strings.Contains(pools, "sub-reaper") || strings.Count(h.OK("nodes"), " up ") == 2 {
			return ""
		}
		return "no node began on the host of another architecture: " + pools
	})
	bins, _ := filepath.Glob(arm.Seen(filepath.Join("/home", h.User.Name, ".launcher/bin/*/launcher")))
	if len(bins) != 1 {
		t.Fatalf("binaries on the host: %q", bins)
	}
	if f, err := elf.Open(bins[0]); err != nil || f.Machine != elf.EM_AARCH64 {
		t.Errorf("what was copied there: %v, %v", f, err)
	}
	if strings.Contains(pools, "sub-reaper") {
		t.Log("the emulator lets no node live")
	} else if out := h.OK("exec", "box-1", "--", "launcher", "version"); !strings.Contains(out, "linux/arm64") {
		t.Errorf("exec: %q", out)
	}
	h.OK("down", "boxes")
	onlyBinary(t, arm, plain)
}
