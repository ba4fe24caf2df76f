// The npm packages of package-lock.json, and with them the Node that runs this project. Always holds: correctly
// installed packages are not changed.
//
// npm skips an optional package whose `engines` do not match the Node that runs npm; the QUIC engine needs Node 22, and
// Debian has 20. So the project's own Node is installed first and then runs npm. `npm ci` installs everything, also
// this Node: a package is unpacked only if its hash matches package-lock.json. (The hash of the package covers the Node
// binary.)
import { existsSync, mkdirSync, readFileSync, realpathSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { findNode } from '../../bin/launch.js'
import { installLibatomic } from './debian.js'
import { attempt, cache, findProgram, hashFiles, Missing, must, readText, root, say, tailOf } from './tools.js'

const lockFile = join(root, 'package-lock.json')
const modules = join(root, 'node_modules')
const stamp = join(modules, '.godwit')
/** Folder of the Node that runs npm while node_modules is empty. */
const bootstrap = join(cache, 'node')
const nodePackage = `node-linux-${process.arch === 'arm64' ? 'arm64' : 'x64'}`
const help = 'Check that npm reaches its registry (npm ping), then run this again; the whole output is in .cache/setup.log.'
const quiet = ['--no-audit', '--no-fund']
const npmEnv = { npm_config_loglevel: 'warn' }

const stampText = () => `${hashFiles([lockFile])} ${process.platform}-${process.arch} 2\n`
const isMusl = () => process.platform === 'linux' && !process.report?.getReport().header.glibcVersionRuntime

/** Whether a package of the lock file is for this machine. */
function isForHere({ os, cpu, libc }, libcHere) {
  const fits = (wanted, here) => wanted === undefined || [wanted].flat().includes(here)
  return fits(os, process.platform) && fits(cpu, process.arch) && fits(libc, libcHere)
}

/** npm's record of installed packages, by path. */
function installed() {
  try {
    return JSON.parse(readFileSync(join(modules, '.package-lock.json'), 'utf8')).packages
  } catch {
    return {}
  }
}

/** Packages of the lock file that are missing in their version, or have another hash: [{ path, optional }]. */
function lacking() {
  const there = installed()
  const libc = isMusl() ? 'musl' : 'glibc'
  const versionAt = path => {
    try {
      return JSON.parse(readFileSync(join(root, path, 'package.json'), 'utf8')).version
    } catch {
      return undefined
    }
  }
  return Object.entries(JSON.parse(readFileSync(lockFile, 'utf8')).packages)
    .filter(
      ([path, entry]) =>
        path !== '' && isForHere(entry, libc) && (versionAt(path) !== entry.version || there[path]?.integrity !== entry.integrity),
    )
    .map(([path, entry]) => ({ path, optional: entry.optional === true }))
}

/** Whether the packages are installed and match this package-lock.json. */
export function npmReady() {
  if (!findNode()) return false
  if (readText(stamp) === stampText()) return true
  // A npm of the user may have installed everything.
  if (!existsSync(modules) || lacking().length > 0) return false
  writeFileSync(stamp, stampText())
  return true
}

/** The Node of the npm package is linked against libatomic, which a minimal Debian does not have. Throws Missing. */
async function mustRun(node) {
  const first = await attempt(node, ['--version'], { timeoutMs: 60_000 })
  if (first.code === 0) return
  if (first.output.includes('libatomic')) await installLibatomic()
  await must(node, ['--version'], 'a Node that runs TypeScript', 'The Node that npm installed does not run here. Use Node 24 or newer.')
}

/** A separate project with only that package and its lock file, with version and hash of the project's lock file. */
function writeBootstrap(entry) {
  if (!entry?.integrity) throw new Missing(`${nodePackage} in package-lock.json`, 'Restore package-lock.json from the repository.')
  mkdirSync(bootstrap, { recursive: true })
  const head = { name: 'godwit-node', version: '1.0.0', dependencies: { [nodePackage]: entry.version } }
  const { optional: _, ...needed } = entry
  const packages = { '': head, [`node_modules/${nodePackage}`]: needed }
  writeFileSync(join(bootstrap, 'package.json'), JSON.stringify({ ...head, private: true }))
  writeFileSync(join(bootstrap, 'package-lock.json'), JSON.stringify({ ...head, lockfileVersion: 3, requires: true, packages }))
}

/** npm as [program, first arguments]: run by the project's own Node if available. */
async function npmCommand() {
  const script = [process.env.npm_execpath, realpathSync(findProgram('npm'))].find(path => path?.endsWith('.js'))
  if (!script) return ['npm', []]
  const there = findNode()
  // npm ci deletes node_modules, and install scripts need the Node that runs npm.
  if (there && !there.startsWith(modules)) {
    await mustRun(there)
    return [there, [script]]
  }
  writeBootstrap(JSON.parse(readFileSync(lockFile, 'utf8')).packages[`node_modules/${nodePackage}`])
  await must('npm', ['ci', ...quiet, '--ignore-scripts', '--prefix', bootstrap], 'a Node that runs TypeScript', help, {
    env: npmEnv,
    cwd: bootstrap,
  })
  const node = join(bootstrap, 'node_modules', nodePackage, 'bin/node')
  await mustRun(node)
  return [node, [script]]
}

/** Only `npm ci`: it installs nothing that is not in the lock file, or has another hash. */
async function install() {
  const [program, first] = await npmCommand()
  const { code, output } = await attempt(program, [...first, 'ci', ...quiet, '--include=dev', '--include=optional'], { env: npmEnv })
  if (code === 0) return
  const why = output.includes('EUSAGE')
    ? 'package.json and package-lock.json do not belong together'
    : `'npm ci' failed (exit code ${code})`
  throw new Missing('npm packages', `${why}:\n${tailOf(output)}\n${help}`)
}

/** Installs the packages. Throws Missing. */
export async function installNpm() {
  if (npmReady()) return
  if (!findProgram('npm')) throw new Missing('npm', 'Install Node 20 or newer with npm.')
  say('installing npm packages (half a minute or so)')
  await install()
  rmSync(bootstrap, { recursive: true, force: true })
  const lack = lacking()
  const needed = lack.filter(({ optional }) => !optional)
  if (needed.length > 0) throw new Missing(`npm packages: ${needed.map(({ path }) => path).join(', ')}`, help)
  if (!findNode())
    throw new Missing('a Node that runs TypeScript', `npm has none for ${process.platform}-${process.arch}: use Node 24 or newer.`)
  await mustRun(findNode())
  for (const { path } of lack) say(`optional, not available here: ${path.replace(/^.*node_modules\//, '')}`)
  writeFileSync(stamp, stampText())
}
