// Package all is the list of backends that this build has. Only the command imports it.
package all

import (
	"launcher/backends"
	"launcher/backends/local"
	"launcher/backends/slurm"
	"launcher/backends/ssh"
	"launcher/backends/ssh/dial"
)

// Backends makes every backend, by the name that specs use, for the state directory home
// ($LAUNCHER_HOME). Hosts are reached with o.
func Backends(home string, o dial.Options) map[string]backends.Backend {
	return map[string]backends.Backend{
		local.Name: local.New(home),
		slurm.Name: slurm.New(home),
		ssh.Name:   ssh.New(home, o),
	}
}
