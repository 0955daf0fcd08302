# Look up all packages of an image in one evaluation.
#
# request: JSON text { source, revision, system, importArgs, names = [ "python3packages.six" .. ], explain }
#   explain: let the evaluation die of what the package set throws, since only Nix's own error has its text
#
# Answer, as JSON:
#   results: one entry for each name, in the order asked, with `status`
#     "ok"             attribute, drvPath, outputs = [ { name, path } ], priority
#     "not-found"      attribute = the set in which the search ended, component = what it does not have
#     "ambiguous"      candidates
#     "not-a-package"  attribute, type
#     "not-a-set"      attribute, type, component = what cannot be in it
#     "failed"         attribute, kinds = what the package's meta says against it
#   known: the names in every set in which a search ended
{ request }:
let
  wanted = builtins.fromJSON request;
  packages = import ./load.nix { inherit (wanted) source revision system importArgs; };

  attempt = if wanted.explain then (value: { success = true; inherit value; }) else builtins.tryEval;

  upper = [ "A" "B" "C" "D" "E" "F" "G" "H" "I" "J" "K" "L" "M" "N" "O" "P" "Q" "R" "S" "T" "U" "V" "W" "X" "Y" "Z" ];
  lower = [ "a" "b" "c" "d" "e" "f" "g" "h" "i" "j" "k" "l" "m" "n" "o" "p" "q" "r" "s" "t" "u" "v" "w" "x" "y" "z" ];
  fold = builtins.replaceStrings upper lower;
  foldedNames = set: builtins.groupBy fold (builtins.attrNames set);
  foldedPackages = foldedNames packages;

  split = text: builtins.filter builtins.isString (builtins.split "[.]" text);
  join = builtins.concatStringsSep ".";

  # The attributes that one component of a name can mean, best first: the literal one, the one
  # behind "_" for names that Nix cannot spell (_1password), then those that differ in case.
  meanings = set: folded: component:
    let
      escaped = "_${component}";
      digit = builtins.match "[0-9].*" component != null;
    in
    if set ? ${component} then [ component ]
    else if digit && set ? ${escaped} then [ escaped ]
    else (folded.${fold component} or [ ]) ++ (if digit then folded.${fold escaped} or [ ] else [ ]);

  walk = set: folded: path: components:
    let
      component = builtins.head components;
      rest = builtins.tail components;
      found = meanings set folded component;
      path' = path ++ found;
      value = set.${builtins.head found};
    in
    if found == [ ] then { status = "not-found"; attribute = join path; component = component; inherit set; }
    else if builtins.tail found != [ ] then
      { status = "ambiguous"; candidates = map (name: join (path ++ [ name ] ++ rest)) found; }
    else if rest == [ ] then { status = "found"; attribute = join path'; inherit value; }
    else
      let tried = attempt value; in
      if !tried.success then { status = "failed"; attribute = join path'; kinds = [ ]; }
      else if !builtins.isAttrs tried.value then
        { status = "not-a-set"; attribute = join path'; component = builtins.head rest; type = builtins.typeOf tried.value; }
      else walk tried.value (foldedNames tried.value) path' rest;

  describe = attribute: package: {
    status = "ok";
    inherit attribute;
    inherit (package) drvPath;
    outputs = map
      (name: {
        inherit name;
        path =
          if name == package.outputName or "out" then package.outPath
          else if package ? ${name} then package.${name}.outPath
          else throw "meta.outputsToInstall names the output '${name}', which the package does not have";
      })
      (
        # `curl.man` is asked for as that output alone
        if package.outputSpecified or false then [ package.outputName ]
        else package.meta.outputsToInstall or [ (package.outputName or "out") ]
      );
    priority = package.meta.priority or null;
  };

  objections = import ./objections.nix;

  resolve = name:
    let
      found = walk packages foldedPackages [ ] (split name);
      forced = attempt found.value;
      isPackage = builtins.isAttrs forced.value && forced.value.type or null == "derivation";
      described = attempt (let it = describe found.attribute forced.value; in builtins.deepSeq it it);
    in
    if found.status == "not-found" then { inherit (found) status attribute component; }
    else if found.status != "found" then found
    else if !forced.success then { status = "failed"; inherit (found) attribute; kinds = [ ]; }
    else
      let kind = attempt isPackage; in
      if kind.success && !kind.value then
        { status = "not-a-package"; inherit (found) attribute; type = builtins.typeOf forced.value; }
      else if kind.success && described.success then described.value
      else { status = "failed"; inherit (found) attribute; kinds = objections forced.value; };

  ends = builtins.filter (found: found.status == "not-found")
    (map (name: walk packages foldedPackages [ ] (split name)) wanted.names);
in
builtins.seq packages {
  results = map resolve wanted.names;
  known = builtins.listToAttrs
    (map (found: { name = found.attribute; value = builtins.attrNames found.set; }) ends);
}
