# Describe packages of a set, a batch at a time: what `nixery-core index` writes down.
#
# request: JSON text { source, revision, system, importArgs, paths = [ [ ] [ "python3Packages" "six" ] .. ], include }
#   paths:   what to describe; the empty path is the package set itself
#   include: attribute paths ("python3Packages") of sets to walk though they do not ask for it
#
# Answer, as JSON: one entry for each path, in the order asked, with `status`
#   "names"   names = what a set holds that is to be walked
#   "ok"      outputs = [ { name, path } ], install = [ name ], version, priority
#   "failed"  kinds = what the package's meta says against it
#   "other"   a value that is no package and no set to walk
#
# What builtins.tryEval cannot catch (abort, recursion without end) ends the evaluation; the caller
# then asks for smaller batches.
{ request }:
let
  wanted = builtins.fromJSON request;
  packages = import ./load.nix { inherit (wanted) source revision system importArgs; };

  # the names that an image can ask for, see check_attribute in nixery_core/model/names.py
  named = name: builtins.match "[A-Za-z0-9_][A-Za-z0-9_'+-]*" name != null;

  value = builtins.foldl' (set: name: set.${name}) packages;

  isPackage = it: builtins.isAttrs it && it.type or null == "derivation";
  isWalked = path: it:
    builtins.isAttrs it
    && (path == [ ] || it.recurseForDerivations or false == true
      || builtins.elem (builtins.concatStringsSep "." path) wanted.include);

  # as `describe` in resolve.nix, with the outputs that are not installed
  describe = package:
    let
      own = package.outputName or "out";
      pathOf = name:
        if name == own then package.outPath
        else if package ? ${name} then package.${name}.outPath
        else throw "meta.outputsToInstall names the output '${name}', which the package does not have";
      install =
        if package.outputSpecified or false then [ own ] else package.meta.outputsToInstall or [ own ];
      more = builtins.filter
        (name: !(builtins.elem name install) && (builtins.tryEval (builtins.seq (pathOf name) true)).success)
        (package.outputs or [ own ]);
      version = package.version or (builtins.parseDrvName (package.name or "")).version;
    in
    {
      status = "ok";
      outputs = map (name: { inherit name; path = pathOf name; }) (install ++ more);
      inherit install;
      version = if builtins.isString version then version else "";
      priority = package.meta.priority or null;
    };

  objections = import ./objections.nix;

  entry = path:
    let
      forced = builtins.tryEval (value path);
      it = forced.value;
      package = builtins.tryEval (isPackage it);
      walked = builtins.tryEval (isWalked path it);
      described = builtins.tryEval (let d = describe it; in builtins.deepSeq d d);
    in
    if !forced.success || !package.success then { status = "failed"; kinds = [ ]; }
    else if package.value then
      (if described.success then described.value else { status = "failed"; kinds = objections it; })
    else if walked.success && walked.value then
      { status = "names"; names = builtins.filter named (builtins.attrNames it); }
    else { status = "other"; };
in
builtins.seq packages (map entry wanted.paths)
