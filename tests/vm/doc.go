// Package vm gives tests a real systemd to talk to: the lab (a Debian root booted in namespaces, up in about a
// second) and the VM (the same root in QEMU, for enforced limits, kernel features and boots).
//
// It owns the roots, their cache, booting, entering and tearing down. It must not know anything of nspawnd beyond
// where its binaries are installed, and nothing here is needed by users.
//
// The way of a lab:
//
//	test ── re-exec ─▶ supervisor ── clone ─▶ init stage ── exec ─▶ /sbin/init of the root
//	  │                 (owns what is on      (mounts, pivots)
//	  │                  the host: cgroup,
//	  │                  state directory)
//	  └──── re-exec ─▶ enter stage (setns) ── fork ─▶ a command in the lab
//
// Every stage is the running program itself, started again under another argv[0] (stage.go), so the package needs
// no helper binary, and works from any test. Whatever a lab mounts is mounted in its own mount namespace; on the host it is two
// directories: a cgroup, and the state directory, whose flock says whether its supervisor lives.
package vm
