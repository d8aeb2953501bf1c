package image

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// TrustDirs are the directories of trust rules, the administrator's before the vendor's. In each a file PREFIX.json says
// whose signature makes an image acceptable whose name begins with a prefix:
//
//	{
//		"prefix": "registry.example/team",
//		"keys": [
//			{"type": "gpg", "file": "registry.example+team.1f0a….gpg"},
//			{"type": "sigstore", "file": "/etc/pki/team.pub"},
//			{"type": "keyless", "file": "sigstore-root.json", "issuer": "https://accounts.example", "subject": "ci@team.example"}
//		],
//		"lookaside": "https://registry.example/signatures"
//	}
//
// The prefix is a host with its port, or a host and the beginning of a path by whole components; "*.example" are all hosts
// below example, and "*" is every name. One signature by one of the keys is enough. Key files are OpenPGP public keys,
// PEM public keys, or, for "keyless", sigstore's trusted_root.json: who may certify identities and which logs count; the
// certificate must be by this issuer for exactly this subject. Relative names start from the rule's directory. "lookaside" is where GPG signatures are fetched from
// (containers-registries.d(5)); by default, what registries.d says holds.
//
// A file here hides one of the same name in a later directory; an empty one, or a link to /dev/null, hides it without a
// replacement. Rules with the same prefix add up. A rule that can't be read stops all verification: it might be the one
// that forbids.
var TrustDirs = []string{"/etc/nspawnd/trust.d", "/usr/lib/nspawnd/trust.d"}

// TrustRule is a file of a trust directory.
type TrustRule struct {
	Path      string     `json:"-"` // of the file
	Prefix    string     `json:"prefix"`
	Keys      []TrustKey `json:"keys"`
	Lookaside string     `json:"lookaside,omitempty"`
}

// TrustKey is a file with public keys.
type TrustKey struct {
	Type KeyType `json:"type"`
	File string  `json:"file"` // absolute in rules that were read
	// Of [KeyKeyless]: who vouched for the signer's identity (an OIDC issuer), and the identity, an e-mail address or a URI.
	Issuer  string `json:"issuer,omitempty"`
	Subject string `json:"subject,omitempty"`
}

// Identity is how a key without a fingerprint is shown.
func (k TrustKey) Identity() string { return k.Subject + " (" + k.Issuer + ")" }

// KeyType is what a key verifies.
type KeyType string

const (
	KeyGPG      KeyType = "gpg"      // OpenPGP "simple signing"
	KeySigstore KeyType = "sigstore" // cosign's signatures
	KeyKeyless  KeyType = "keyless"  // cosign's signatures by a certified identity
)

const (
	maxTrustRule = 1 << 20
	trustSuffix  = ".json"
	anyPrefix    = "*"
)

// keySuffix is how key files end.
var keySuffix = map[KeyType]string{KeyGPG: ".gpg", KeySigstore: ".pub", KeyKeyless: ".root"}

// ReadTrust returns the rules that hold, by file name; dirs are [TrustDirs] except in tests.
func ReadTrust(dirs []string) ([]TrustRule, error) {
	files, err := trustFiles(dirs)
	if err != nil {
		return nil, err
	}
	return readRules(files)
}

// TrustInputs returns all that [ReadTrust] depends on: the directories, and the files in them.
func TrustInputs(dirs []string) ([]string, error) {
	files, err := trustFiles(dirs)
	return append(slices.Clone(dirs), slices.Sorted(maps.Values(files))...), err
}

// trustFiles gives the files of rules by name, those that hide others.
func trustFiles(dirs []string) (map[string]string, error) {
	files := map[string]string{}
	for _, dir := range dirs {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("trust rules: %w", err)
		}
		for _, entry := range entries {
			name := entry.Name()
			if _, hidden := files[name]; !hidden && strings.HasSuffix(name, trustSuffix) && !strings.HasPrefix(name, ".") {
				files[name] = filepath.Join(dir, name)
			}
		}
	}
	return files, nil
}

func readRules(files map[string]string) ([]TrustRule, error) {
	var rules []TrustRule
	for _, path := range files {
		data, err := readLimited(path, maxTrustRule)
		if err != nil {
			return nil, fmt.Errorf("trust rules: %w", err)
		}
		if len(data) == 0 {
			continue
		}
		rule, err := parseTrustRule(data, filepath.Dir(path))
		if err != nil {
			return nil, fmt.Errorf("trust rule %s: %w", path, err)
		}
		rule.Path = path
		rules = append(rules, rule)
	}
	slices.SortFunc(rules, func(a, b TrustRule) int { return strings.Compare(filepath.Base(a.Path), filepath.Base(b.Path)) })
	return rules, nil
}

// parseTrustRule reads a rule of a file in dir. It is strict: a word misspelt must not weaken a rule.
func parseTrustRule(data []byte, dir string) (TrustRule, error) {
	var rule TrustRule
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&rule); err != nil {
		return rule, err
	}
	if decoder.More() {
		return rule, errors.New("more than one object")
	}
	if err := checkPrefix(rule.Prefix); err != nil {
		return rule, err
	}
	if len(rule.Keys) == 0 {
		return rule, errors.New("no keys")
	}
	for i, key := range rule.Keys {
		if err := key.check(); err != nil {
			return rule, err
		}
		if !filepath.IsAbs(key.File) {
			rule.Keys[i].File = filepath.Join(dir, key.File)
		}
	}
	return rule, checkLookaside(rule.Lookaside)
}

func (k TrustKey) check() error {
	switch {
	case keySuffix[k.Type] == "":
		return fmt.Errorf("unknown type of key %q", k.Type)
	case k.File == "":
		return errors.New("a key without file")
	case (k.Type == KeyKeyless) != (k.Issuer != "" && k.Subject != ""), k.Type != KeyKeyless && k.Issuer+k.Subject != "":
		return errors.New("issuer and subject belong to a key of type keyless, both of them")
	}
	return nil
}

func checkLookaside(s string) error {
	if s == "" {
		return nil
	}
	u, err := url.Parse(s)
	if err != nil {
		return fmt.Errorf("lookaside: %w", err)
	}
	if u.Scheme != "https" && u.Scheme != "http" && u.Scheme != "file" {
		return fmt.Errorf("lookaside %q: not a https:, http: or file: URL", s)
	}
	return nil
}

// checkPrefix wants "*", "*.DOMAIN", HOST or HOST/PATH.
func checkPrefix(prefix string) error {
	if prefix == anyPrefix {
		return nil
	}
	domain, path, hasPath := strings.Cut(prefix, "/")
	domain, isWildcard := strings.CutPrefix(domain, "*.")
	err := checkDomain(domain)
	switch {
	case err != nil:
	case !isWildcard && !strings.ContainsAny(domain, ".:") && domain != "localhost":
		err = fmt.Errorf("write names in full, %s/%s", defaultDomain, prefix)
	case isWildcard && hasPath:
		err = errors.New("a path can't follow a wildcard")
	case hasPath:
		err = checkPath(path)
	}
	if err != nil {
		return fmt.Errorf("prefix %q: %w", prefix, err)
	}
	return nil
}

// Scopes returns what a policy may be about that covers r, the most specific first: the name with its tag or digest, the
// repository, what it is in, up to the host, and wildcards. Both trust rules and policy.json (containers-policy.json(5))
// are looked up by these.
func (r Reference) Scopes() []string {
	name := r.Repository()
	full := name + ":" + r.tag
	if r.digest != "" {
		full = name + "@" + string(r.digest)
	}
	scopes := []string{full, name}
	for i := strings.LastIndexByte(name, '/'); i >= 0; i = strings.LastIndexByte(name, '/') {
		name = name[:i]
		scopes = append(scopes, name)
	}
	host, _, _ := strings.Cut(r.domain, ":")
	for _, rest, ok := strings.Cut(host, "."); ok; _, rest, ok = strings.Cut(rest, ".") {
		scopes = append(scopes, "*."+rest)
	}
	return scopes
}

// TrustFor returns those of the rules that are for the given prefix; see [Reference.Scopes].
func TrustFor(rules []TrustRule, scope string) []TrustRule {
	var found []TrustRule
	for _, rule := range rules {
		if rule.Prefix == scope {
			found = append(found, rule)
		}
	}
	return found
}

// AddTrust adds a key, whose file has the content data and gets its name here, to the rule for prefix in the first of dirs. If
// that has none, it starts from the rule that the new file is going to hide. An empty lookaside leaves what the rule has. Key files
// are named after their fingerprint: adding a key again changes nothing.
func AddTrust(dirs []string, prefix string, key TrustKey, fingerprint string, data []byte, lookaside string) (TrustRule, error) {
	if err := checkPrefix(prefix); err != nil {
		return TrustRule{}, err
	}
	if err := checkLookaside(lookaside); err != nil {
		return TrustRule{}, err
	}
	if err := os.MkdirAll(dirs[0], 0o755); err != nil {
		return TrustRule{}, fmt.Errorf("trust rules: %w", err)
	}
	name := trustFile(prefix)
	rule, err := findRule(dirs, name+trustSuffix, prefix)
	if err != nil {
		return rule, err
	}
	rule.Path = filepath.Join(dirs[0], name+trustSuffix)
	if lookaside != "" {
		rule.Lookaside = lookaside
	}
	key.File = filepath.Join(dirs[0], name+"."+fingerprint+keySuffix[key.Type])
	if err := key.check(); err != nil {
		return rule, err
	}
	if !slices.Contains(rule.Keys, key) {
		rule.Keys = append(rule.Keys, key)
	}
	if err := replaceFile(key.File, data); err != nil {
		return rule, fmt.Errorf("trust rules: %w", err)
	}
	if err := rule.write(); err != nil {
		return rule, fmt.Errorf("trust rules: %w", err)
	}
	return rule, nil
}

// findRule gives the rule in the first file of that name, and an empty one if there is none or if it is masked.
func findRule(dirs []string, name, prefix string) (TrustRule, error) {
	for _, dir := range dirs {
		path := filepath.Join(dir, name)
		data, err := readLimited(path, maxTrustRule)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return TrustRule{}, fmt.Errorf("trust rules: %w", err)
		}
		if len(data) == 0 {
			break
		}
		rule, err := parseTrustRule(data, dir)
		if err == nil && rule.Prefix != prefix {
			err = fmt.Errorf("is for the prefix %s", rule.Prefix)
		}
		if err != nil {
			return TrustRule{}, fmt.Errorf("trust rule %s: %w", path, err)
		}
		return rule, nil
	}
	return TrustRule{Prefix: prefix}, nil
}

// write saves a rule with key files relative to its directory.
func (rule TrustRule) write() error {
	keys := slices.Clone(rule.Keys)
	for i, key := range keys {
		if filepath.Dir(key.File) == filepath.Dir(rule.Path) {
			keys[i].File = filepath.Base(key.File)
		}
	}
	rule.Keys = keys
	data, err := json.MarshalIndent(rule, "", "\t")
	if err != nil {
		return err
	}
	return replaceFile(rule.Path, append(data, '\n'))
}

// RemoveTrust removes the rules for prefix, with the key files that were made for them. A rule in a later directory, the
// vendor's, is masked. It returns the files that are gone or masked.
func RemoveTrust(dirs []string, prefix string) ([]string, error) {
	rules, err := ReadTrust(dirs)
	if err != nil {
		return nil, err
	}
	var done []string
	for _, rule := range TrustFor(rules, prefix) {
		name := filepath.Base(rule.Path)
		if filepath.Dir(rule.Path) == dirs[0] {
			if err := os.Remove(rule.Path); err != nil {
				return done, fmt.Errorf("trust rules: %w", err)
			}
			for _, key := range rule.Keys {
				if strings.HasPrefix(key.File, strings.TrimSuffix(rule.Path, trustSuffix)+".") {
					os.Remove(key.File)
				}
			}
		}
		for _, dir := range dirs[1:] {
			if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
				continue
			}
			if err := os.MkdirAll(dirs[0], 0o755); err != nil {
				return done, fmt.Errorf("trust rules: %w", err)
			}
			if err := os.Symlink("/dev/null", filepath.Join(dirs[0], name)); err != nil {
				return done, fmt.Errorf("trust rules: %w", err)
			}
			break
		}
		done = append(done, rule.Path)
	}
	if done == nil {
		return nil, fmt.Errorf("no trust rule for the prefix %q; machinectl-lite trust list shows which there are", prefix)
	}
	return done, nil
}

// trustFile makes a file name of a prefix. A prefix has no "+", and no "_" in its host.
func trustFile(prefix string) string {
	return strings.NewReplacer("/", "+", "*", "_").Replace(prefix)
}

// replaceFile writes a file that others may read, at once or not at all.
func replaceFile(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if err := f.Chmod(0o644); err != nil {
		return err
	}
	if _, err := f.Write(data); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}
