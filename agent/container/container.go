// Package container says how a node is started inside a container: the supervisor, and
// with it the agent and all of the user's processes, by Apptainer, Enroot or Podman, as
// the same user, with the machine's network, devices, shared memory and directories. It
// makes commands and runs none.
package container

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"launcher/internal/errs"
)

// Machine is what matters of a machine.
type Machine struct {
	Shared   []Share  // directories that are the same inside
	GPU      string   // nvidia, amd or ""
	CDI      bool     // Podman has been told how to give GPUs to containers
	Devices  []string // more devices, such as a fabric's
	CgroupV2 bool
	Root     bool
	Path     func(program string) (string, error)
}

// Share is a directory of the machine and where it is inside.
type Share struct{ From, To string }

// systems are directories that the image has its own of.
var systems = []string{"afs", "bin", "boot", "dev", "etc", "lib", "lib32", "lib64", "libx32", "lost+found", "nix", "opt", "proc", "root", "run",
	"sbin", "selinux", "snap", "sys", "usr", "var"}

// Look finds out about this machine, below root. Everything in its root directory that is
// no system's is seen inside, under the same name: homes, scratch, /tmp, whatever a site
// calls them. need are directories and files that must be, wherever they lie.
func Look(root string, need ...string) Machine {
	at := func(p string) string { return filepath.Join(root, p) }
	there := func(p string) bool { _, err := os.Stat(at(p)); return err == nil }
	m := Machine{Path: exec.LookPath, Root: os.Geteuid() == 0, CgroupV2: there("/sys/fs/cgroup/cgroup.controllers")}
	entries, _ := os.ReadDir(root)
	for _, e := range entries {
		to := "/" + e.Name()
		from, err := filepath.EvalSymlinks(at(to))
		if err != nil || slices.Contains(systems, e.Name()) || strings.ContainsAny(to, ",:") {
			continue
		}
		if st, err := os.Stat(from); err != nil || !st.IsDir() {
			continue
		}
		if d, err := os.Open(from); err != nil { // it is not ours to see
			continue
		} else {
			d.Close()
		}
		if root != "/" {
			from = "/" + strings.TrimPrefix(strings.TrimPrefix(from, root), "/")
		}
		m.Shared = append(m.Shared, Share{from, to})
	}
	for _, p := range need {
		if filepath.IsAbs(p) && there(p) && !m.sees(p) {
			m.Shared = append(m.Shared, Share{p, p})
		}
	}
	switch {
	case there("/dev/nvidiactl"):
		m.GPU = "nvidia"
		m.CDI = there("/etc/cdi/nvidia.yaml") || there("/var/run/cdi/nvidia.yaml")
	case there("/dev/kfd"):
		m.GPU = "amd"
	}
	if there("/dev/infiniband") {
		m.Devices = append(m.Devices, "/dev/infiniband")
	}
	return m
}

func (m Machine) sees(p string) bool {
	return slices.ContainsFunc(m.Shared, func(s Share) bool { return p == s.To || strings.HasPrefix(p, s.To+"/") })
}

// Command starts a program in a container.
type Command struct {
	Argv   []string
	Env    []string // of the command itself
	Remove []string // run when it has ended, whatever became of it; nil = nothing is left
}

// theirs are variables that the image has its own of, or that say where things of the
// machine are which are not inside.
var theirs = []string{"PATH", "LD_LIBRARY_PATH", "LD_PRELOAD", "LIBRARY_PATH", "CPATH", "MANPATH", "PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV", "HOSTNAME", "SHELL",
	"PWD", "OLDPWD", "SHLVL", "_", "LOADEDMODULES", "_LMFILES_", "MODULEPATH", "MODULESHOME", "ENV", "BASH_ENV", "LS_COLORS", "XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS"}

func passes(name string) bool {
	return !slices.Contains(theirs, name) && !strings.HasPrefix(name, "BASH_FUNC_") && !strings.HasPrefix(name, "CONDA_") &&
		!strings.HasPrefix(name, "LMOD_") && !strings.HasPrefix(name, "__LMOD") && !strings.HasPrefix(name, "__MODULES")
}

// In gives the command that starts argv in the container that a pool names, SCHEME://IMAGE:
// with the working directory dir and env as far as it is for inside. Descriptors 3 and on,
// fds of them, are passed on. name is one that no other container on the machine has.
func (m Machine) In(spec, name, dir string, env []string, fds int, argv ...string) (Command, error) {
	scheme, image, _ := strings.Cut(spec, "://")
	var names, inner []string
	for _, kv := range env {
		if n, _, ok := strings.Cut(kv, "="); ok && passes(n) {
			names, inner = append(names, n), append(inner, kv)
		} else if n == "PATH" || n == "XDG_RUNTIME_DIR" || n == "DBUS_SESSION_BUS_ADDRESS" { // the runtime itself has need of them
			inner = append(inner, kv)
		}
	}
	slices.Sort(names)
	names = slices.Compact(names)
	switch scheme {
	case "apptainer":
		return m.apptainer(image, dir, inner, argv)
	case "enroot":
		return m.enroot(image, env, names, argv)
	case "podman":
		return m.podman(image, name, dir, env, names, fds, argv)
	}
	return Command{}, errs.New(errs.Invalid, "container %q", spec).Hint("give apptainer://IMAGE, enroot://IMAGE or podman://IMAGE")
}

func (m Machine) find(programs ...string) (string, error) {
	for _, p := range programs {
		if path, err := m.Path(p); err == nil {
			return path, nil
		}
	}
	return "", errs.New(errs.NotFound, "there is no %s on this node, which the pool's container needs", programs[0]).
		Hint("see that it is on PATH of a shell that is no login shell; or leave container out")
}

func (s Share) String() string {
	if s.From == s.To {
		return s.From
	}
	return s.From + ":" + s.To
}

func (s Share) pair() string { return s.From + ":" + s.To }

// apptainer passes the environment, descriptors, /dev, /proc and the network by itself.
func (m Machine) apptainer(image, dir string, env, argv []string) (Command, error) {
	bin, err := m.find("apptainer", "singularity")
	if err != nil {
		return Command{}, err
	}
	out := []string{bin, "--quiet", "exec"}
	switch m.GPU {
	case "nvidia":
		out = append(out, "--nv")
	case "amd":
		out = append(out, "--rocm")
	}
	for _, s := range m.Shared {
		out = append(out, "--bind", s.String())
	}
	out = append(append(out, "--pwd", dir, image), argv...)
	return Command{Argv: out, Env: env}, nil
}

// enroot passes descriptors, /dev, /proc and the network; the environment by name.
func (m Machine) enroot(image string, env, names, argv []string) (Command, error) {
	bin, err := m.find("enroot")
	if err != nil {
		return Command{}, err
	}
	out := []string{bin, "start"}
	for _, s := range m.Shared {
		out = append(out, "--mount", s.pair())
	}
	for _, n := range names {
		if !strings.HasPrefix(n, "NVIDIA_") {
			out = append(out, "--env", n)
		}
	}
	if m.GPU == "nvidia" {
		out = append(out, "--env", "NVIDIA_VISIBLE_DEVICES=all", "--env", "NVIDIA_DRIVER_CAPABILITIES=compute,utility")
	}
	return Command{Argv: append(append(out, image), argv...), Env: env}, nil
}

// podman is told everything. Values of variables are not on the command line. A container
// of its own cgroup would be out of Slurm's sight: it stays in ours.
func (m Machine) podman(image, name, dir string, env, names []string, fds int, argv []string) (Command, error) {
	bin, err := m.find("podman")
	if err != nil {
		return Command{}, err
	}
	out := []string{bin, "run", "--rm", "--name", name, "--network=host", "--uts=host", "--ipc=private", "--security-opt=label=disable", "--security-opt=seccomp=unconfined",
		"--log-driver=none", "--workdir", dir, "--preserve-fds", strconv.Itoa(fds)}
	if !m.Root {
		out = append(out, "--userns=keep-id")
	}
	if m.CgroupV2 {
		out = append(out, "--cgroups=disabled")
	}
	switch {
	case m.GPU == "nvidia" && m.CDI:
		out = append(out, "--device", "nvidia.com/gpu=all")
	case m.GPU == "nvidia":
		return Command{}, errs.New(errs.Unavailable, "Podman has not been told how to give this node's GPUs to containers").
			Hint("as root, once: nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml")
	case m.GPU == "amd":
		out = append(out, "--device", "/dev/kfd", "--device", "/dev/dri", "--group-add", "keep-groups")
	}
	for _, d := range m.Devices {
		out = append(out, "--device", d)
	}
	for _, s := range append([]Share{{"/dev/shm", "/dev/shm"}}, m.Shared...) {
		out = append(out, "--volume", s.pair())
	}
	for _, n := range names {
		out = append(out, "--env", n)
	}
	out = append(out, "--entrypoint", argv[0])
	if filepath.IsAbs(image) { // a directory, not an image
		out = append(out, "--rootfs")
	}
	return Command{Argv: append(append(out, image), argv[1:]...), Env: env, Remove: []string{bin, "rm", "--force", "--ignore", "--time=0", name}}, nil
}
