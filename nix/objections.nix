# What the meta of a package says against it: "unfree", "broken", "insecure", "unsupported-platform".
#
# Only explains a failure: nixpkgs tells `unfree` of packages that the caller has allowed, too.
package:
let
  says = name: expected:
    let tried = builtins.tryEval ((package.meta.${name} or null) == expected); in tried.success && tried.value;
in
builtins.filter (kind: kind != null) [
  (if says "unfree" true then "unfree" else null)
  (if says "broken" true then "broken" else null)
  (if says "insecure" true then "insecure" else null)
  (if says "unsupported" true || says "available" false then "unsupported-platform" else null)
]
