package container

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"launcher/internal/errs"
)

// machine has every runtime, and two directories of its own.
func machine(change func(*Machine)) Machine {
	m := Machine{Shared: []Share{{"/home", "/home"}, {"/lustre/work", "/work"}},
		Path: func(p string) (string, error) {
			if p == "singularity" {
				return "", os.ErrNotExist
			}
			return "/usr/bin/" + p, nil
		}}
	if change != nil {
		change(&m)
	}
	return m
}

var outside = []string{"HOME=/home/a", "PATH=/site/bin:/usr/bin", "LD_LIBRARY_PATH=/site/lib", "SECRET=s3cret", "LAUNCHER_ALLOC=mark", "CUDA_VISIBLE_DEVICES=0,1",
	"CONDA_PREFIX=/opt/conda", "BASH_FUNC_module%%=() { :; }", "NVIDIA_VISIBLE_DEVICES=void", "TMPDIR=/tmp/a b"}

// TestCommands: what is started, for each runtime and kind of machine.
func TestCommands(t *testing.T) {
	const podman = "/usr/bin/podman run --rm --name launcher-1 --network=host --uts=host --ipc=private --security-opt=label=disable --security-opt=seccomp=unconfined " +
		"--log-driver=none --workdir /tmp/n --preserve-fds 2 "
	const volumes = "--volume /dev/shm:/dev/shm --volume /home:/home --volume /lustre/work:/work "
	const names = "--env CUDA_VISIBLE_DEVICES --env HOME --env LAUNCHER_ALLOC --env NVIDIA_VISIBLE_DEVICES --env SECRET --env TMPDIR "
	const entry = "--entrypoint /home/a/launcher "
	const binds = "--bind /home --bind /lustre/work:/work --pwd /tmp/n "
	const mounts = "--mount /home:/home --mount /lustre/work:/work --env CUDA_VISIBLE_DEVICES --env HOME --env LAUNCHER_ALLOC --env SECRET --env TMPDIR "
	nvidia := func(m *Machine) { m.GPU = "nvidia" }
	for name, c := range map[string]struct {
		image  string
		change func(*Machine)
		want   string
	}{
		"apptainer":        {"apptainer:///images/x.sif", nil, "/usr/bin/apptainer --quiet exec " + binds + "/images/x.sif /home/a/launcher supervise"},
		"apptainer nvidia": {"apptainer://docker://python:3.12", nvidia, "/usr/bin/apptainer --quiet exec --nv " + binds + "docker://python:3.12 /home/a/launcher supervise"},
		"apptainer amd":    {"apptainer:///x.sif", func(m *Machine) { m.GPU = "amd" }, "/usr/bin/apptainer --quiet exec --rocm " + binds + "/x.sif /home/a/launcher supervise"},
		"singularity": {"apptainer:///x.sif", func(m *Machine) {
			m.Path = func(p string) (string, error) {
				if p == "apptainer" {
					return "", os.ErrNotExist
				}
				return "/opt/bin/" + p, nil
			}
		}, "/opt/bin/singularity --quiet exec " + binds + "/x.sif /home/a/launcher supervise"},
		"enroot": {"enroot://pytorch", nil, "/usr/bin/enroot start " + mounts + "pytorch /home/a/launcher supervise"},
		"enroot nvidia": {"enroot:///x.sqsh", nvidia,
			"/usr/bin/enroot start " + mounts + "--env NVIDIA_VISIBLE_DEVICES=all --env NVIDIA_DRIVER_CAPABILITIES=compute,utility /x.sqsh /home/a/launcher supervise"},
		"podman":      {"podman://docker.io/library/python:3.12", nil, podman + "--userns=keep-id " + volumes + names + entry + "docker.io/library/python:3.12 supervise"},
		"podman root": {"podman://python", func(m *Machine) { m.Root = true }, podman + volumes + names + entry + "python supervise"},
		"podman v2":   {"podman://python", func(m *Machine) { m.CgroupV2 = true }, podman + "--userns=keep-id --cgroups=disabled " + volumes + names + entry + "python supervise"},
		"podman nvidia": {"podman://python", func(m *Machine) { m.GPU, m.CDI = "nvidia", true },
			podman + "--userns=keep-id --device nvidia.com/gpu=all " + volumes + names + entry + "python supervise"},
		"podman amd": {"podman://python", func(m *Machine) { m.GPU = "amd"; m.Devices = []string{"/dev/infiniband"} },
			podman + "--userns=keep-id --device /dev/kfd --device /dev/dri --group-add keep-groups --device /dev/infiniband " + volumes + names + entry + "python supervise"},
		"podman directory": {"podman:///images/x", nil, podman + "--userns=keep-id " + volumes + names + entry + "--rootfs /images/x supervise"},
	} {
		got, err := machine(c.change).In(c.image, "launcher-1", "/tmp/n", outside, 2, "/home/a/launcher", "supervise")
		if line := strings.Join(got.Argv, " "); err != nil || line != c.want {
			t.Errorf("%s: %v\n got %s\nwant %s", name, err, line, c.want)
		}
		if slices.ContainsFunc(got.Argv, func(w string) bool { return strings.Contains(w, "s3cret") }) {
			t.Errorf("%s: the value of a variable is on the command line", name)
		}
		if !slices.Contains(got.Env, "SECRET=s3cret") || !slices.Contains(got.Env, "PATH=/site/bin:/usr/bin") {
			t.Errorf("%s: environment %q", name, got.Env)
		}
		if (got.Remove != nil) != strings.HasPrefix(name, "podman") {
			t.Errorf("%s: removed by %q", name, got.Remove)
		}
		if strings.HasPrefix(c.image, "apptainer") && slices.ContainsFunc(got.Env, func(kv string) bool {
			return strings.HasPrefix(kv, "LD_") || strings.HasPrefix(kv, "CONDA_") || strings.HasPrefix(kv, "BASH_FUNC_")
		}) {
			t.Errorf("%s: what is not there inside passes: %q", name, got.Env)
		}
	}
}

func TestRefused(t *testing.T) {
	none := machine(func(m *Machine) { m.Path = func(string) (string, error) { return "", os.ErrNotExist } })
	if _, err := none.In("enroot://x", "n", "/", nil, 2, "/l"); err == nil || !strings.Contains(err.Error(), "there is no enroot on this node") {
		t.Errorf("got %v", err)
	}
	_, err := machine(func(m *Machine) { m.GPU = "nvidia" }).In("podman://x", "n", "/", nil, 2, "/l")
	if err == nil || !strings.Contains(strings.Join(errs.HintsOf(err), " "), "nvidia-ctk cdi generate") {
		t.Errorf("got %v", err)
	}
}

// TestLook: what a site calls its directories is seen inside, what is a system's is not.
func TestLook(t *testing.T) {
	root := t.TempDir()
	for _, d := range []string{"home", "scratch", "usr", "etc/cdi", "opt", "tmp", "var/lib/node", "dev/infiniband", "mnt/fs1/work", "sys/fs/cgroup"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []string{"dev/nvidiactl", "etc/cdi/nvidia.yaml", "vmlinuz", "sys/fs/cgroup/cgroup.controllers"} {
		if err := os.WriteFile(filepath.Join(root, f), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("mnt/fs1/work", filepath.Join(root, "work")); err != nil {
		t.Fatal(err)
	}
	m := Look(root, "/var/lib/node", "/home/a", "/nosuch", "relative", "")
	want := []Share{{"/home", "/home"}, {"/mnt", "/mnt"}, {"/scratch", "/scratch"}, {"/tmp", "/tmp"}, {"/mnt/fs1/work", "/work"}, {"/var/lib/node", "/var/lib/node"}}
	if !slices.Equal(m.Shared, want) {
		t.Errorf("seen inside: %v", m.Shared)
	}
	if m.GPU != "nvidia" || !m.CDI || !m.CgroupV2 || len(m.Devices) != 1 {
		t.Errorf("machine %+v", m)
	}
}
