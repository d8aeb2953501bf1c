package units

import (
	"fmt"
	"path"
	"strconv"
	"strings"
)

// Secret is a file that only the machine sees, or a variable of its payload: a credential of its unit (systemd.exec(5), "Credentials").
type Secret struct {
	Name      string // of the credential
	Source    string // file on the host; the caller finds it, where it is "" after ParseSecret
	Encrypted bool   // Source is one of systemd-creds(1)
	Variable  string // "": it is a file
	Target    string // absolute path of the file in the machine
	UID, GID  uint32
	Mode      uint32
}

// secretsDir is where a machine has its secrets, as docker's have them.
const secretsDir = "/run/secrets"

// ParseSecret reads NAME[,type=mount|env][,target=NAME][,uid=N][,gid=N][,mode=OCTAL] as podman-run(1) --secret does, and src=FILE for a secret that is in
// a file.
func ParseSecret(s string) (Secret, error) {
	out := Secret{Mode: 0o444}
	kind, target := "mount", ""
	for i, field := range strings.Split(s, ",") {
		key, value, assigned := strings.Cut(field, "=")
		if i == 0 && !assigned {
			key, value = "source", field
		}
		var err error
		switch key {
		case "source", "id":
			out.Name = value
		case "src":
			if !strings.HasPrefix(value, "/") {
				return out, fmt.Errorf("%q: src is not an absolute path", s)
			}
			out.Source = value
		case "type":
			kind = value
		case "target":
			target = value
		case "uid":
			out.UID, err = parseUint32(value)
		case "gid":
			out.GID, err = parseUint32(value)
		case "mode":
			out.Mode, err = parseMode(value)
		default:
			err = fmt.Errorf("%q is not one of source, src, type, target, uid, gid, mode", key)
		}
		if err != nil {
			return out, fmt.Errorf("%q: %w", s, err)
		}
	}
	if !validCredential(out.Name) {
		return out, fmt.Errorf("%q: %q is not a name of a secret (no \"/\" or \":\", at most 255 bytes)", s, out.Name)
	}
	if target == "" {
		target = out.Name
	}
	switch kind {
	case "env":
		if strings.ContainsAny(target, "=\x00") {
			return out, fmt.Errorf("%q: %q is not a name of a variable", s, target)
		}
		out.Variable = target
	case "mount":
		out.Target = path.Join(secretsDir, target)
		if path.IsAbs(target) {
			out.Target = path.Clean(target)
		}
		if path.Dir(out.Target) != secretsDir {
			return out, fmt.Errorf("%q: a secret is a file in %s; for one elsewhere use --volume", s, secretsDir)
		}
	default:
		return out, fmt.Errorf("%q: type %q is not mount or env", s, kind)
	}
	return out, nil
}

// validCredential says whether a credential may have the name (systemd.exec(5), LoadCredential=).
func validCredential(name string) bool {
	return name != "" && name != "." && name != ".." && len(name) <= 255 && !strings.ContainsAny(name, "/:\x00") && strings.IndexFunc(name, func(r rune) bool { return r < ' ' || r > '~' }) < 0
}

// secrets adds the credentials, and for the launcher what to make of them: what the manager makes can be read by root alone where the payload's
// user is not one of the host's.
func (m Machine) secrets(u *Unit) {
	mounted := false
	for _, s := range m.Secrets {
		directive := "LoadCredential"
		if s.Encrypted {
			directive = "LoadCredentialEncrypted"
		}
		u.set(directive, []Pair{{s.Name, s.Source}})
		mounted = mounted || s.Variable == ""
	}
	if mounted {
		options := "mode=0755,size=16M,nosuid,nodev,noexec"
		if m.Users != nil {
			options += fmt.Sprintf(",uid=%d,gid=%d", m.HostUID(0), m.HostGID(0))
		}
		u.set("TemporaryFileSystem", []Tmpfs{{secretsDir, options}})
	}
}

// secretArguments are the launcher's.
func (m Machine) secretArguments() (out []string) {
	for _, s := range m.Secrets {
		if s.Variable != "" {
			out = append(out, "--secret-env="+s.Name+":"+s.Variable)
			continue
		}
		out = append(out, fmt.Sprintf("--secret-file=%s:%d:%d:%s:%s", s.Name, s.UID, s.GID, strconv.FormatUint(uint64(s.Mode), 8), s.Target))
	}
	return out
}

// secretCapabilities are those that the launcher needs to give secrets to their owners.
func (m Machine) secretCapabilities() (mask uint64) {
	for _, s := range m.Secrets {
		if s.Variable == "" && (s.UID != 0 || s.GID != 0) {
			mask, _ = ParseCapabilities("CHOWN")
		}
	}
	return mask
}
