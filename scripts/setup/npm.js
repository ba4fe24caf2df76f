// The npm packages of package-lock.json, and with them the Node that runs this project. Always holds: what is installed and right is left alone.
//
// npm leaves out an optional package whose `engines` do not fit the Node that npm itself runs under; the QUIC engine wants Node 22, a Debian
// machine has 20. So the project's own Node is fetched first, and npm is run with it.
import { existsSync, mkdirSync, readFileSync, realpathSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { findNode } from '../../bin/launch.js'
import { installLibatomic } from './debian.js'
import { attempt, cache, findProgram, hashFiles, Missing, must, readText, root, say, tailOf, whisper } from './tools.js'

const lockFile = join(root, 'package-lock.json')
const modules = join(root, 'node_modules')
const stamp = join(modules, '.godwit')
/** Where the Node that runs npm is put for the time that node_modules is empty. */
const bootstrap = join(cache, 'node')
const nodePackage = `node-linux-${process.arch === 'arm64' ? 'arm64' : 'x64'}`
const help = 'Check that npm reaches its registry (npm ping), then run this again; the whole output is in .cache/setup.log.'
const quiet = ['--no-audit', '--no-fund']
const npmEnv = { npm_config_loglevel: 'warn' }

const stampText = () => `${hashFiles([lockFile])} ${process.platform}-${process.arch} 2\n`
const isMusl = () => process.platform === 'linux' && !process.report?.getReport().header.glibcVersionRuntime

/** Whether a package of the lock file is meant for this machine. */
function isForHere({ os, cpu, libc }, libcHere) {
  const fits = (wanted, here) => wanted === undefined || [wanted].flat().includes(here)
  return fits(os, process.platform) && fits(cpu, process.arch) && fits(libc, libcHere)
}

/** Packages of the lock file that are not there in their version: [{ path, optional }]. */
function lacking() {
  const libc = isMusl() ? 'musl' : 'glibc'
  const versionAt = path => {
    try {
      return JSON.parse(readFileSync(join(root, path, 'package.json'), 'utf8')).version
    } catch {
      return undefined
    }
  }
  return Object.entries(JSON.parse(readFileSync(lockFile, 'utf8')).packages)
    .filter(([path, entry]) => path !== '' && isForHere(entry, libc) && versionAt(path) !== entry.version)
    .map(([path, entry]) => ({ path, optional: entry.optional === true }))
}

/** Whether the packages are there and belong to this package-lock.json. */
export function npmReady() {
  if (!findNode()) return false
  if (readText(stamp) === stampText()) return true
  // Somebody's own `npm install` may have put it all there.
  if (!existsSync(modules) || lacking().length > 0) return false
  writeFileSync(stamp, stampText())
  return true
}

/** The Node of npm's package is linked against libatomic, which a small Debian does not have. Throws Missing. */
async function mustRun(node) {
  const first = await attempt(node, ['--version'], { timeoutMs: 60_000 })
  if (first.code === 0) return
  if (first.output.includes('libatomic')) await installLibatomic()
  await must(node, ['--version'], 'a Node that runs TypeScript', 'The Node that npm installed does not run here. Use Node 24 or newer.')
}

/** npm as [program, first arguments]: run by the project's own Node where that can be had. */
async function npmCommand() {
  const script = [process.env.npm_execpath, realpathSync(findProgram('npm'))].find(path => path?.endsWith('.js'))
  if (!script) return ['npm', []]
  const there = findNode()
  if (there) {
    await mustRun(there)
    return [there, [script]]
  }
  const version = JSON.parse(readFileSync(lockFile, 'utf8')).packages[`node_modules/${nodePackage}`]?.version
  mkdirSync(bootstrap, { recursive: true })
  const wanted = `${nodePackage}@${version ?? 'latest'}`
  await must(
    'npm',
    ['install', '--no-save', '--no-package-lock', ...quiet, '--prefix', bootstrap, wanted],
    'a Node that runs TypeScript',
    help,
    {
      env: npmEnv,
      cwd: bootstrap,
    },
  )
  const node = join(bootstrap, 'node_modules', nodePackage, 'bin/node')
  await mustRun(node)
  return [node, [script]]
}

/** `npm ci` into an empty place; otherwise, or where the lock file lacks other platforms' packages, an install by the lock that leaves the rest alone. */
async function install() {
  const [program, first] = await npmCommand()
  const options = { env: npmEnv }
  const include = [...quiet, '--include=dev', '--include=optional']
  if (!existsSync(modules)) {
    const { code, output } = await attempt(program, [...first, 'ci', ...include], options)
    if (code === 0) return
    if (!output.includes('EUSAGE')) throw new Missing('npm packages', `'npm ci' failed (exit code ${code}):\n${tailOf(output)}\n${help}`)
    whisper('npm ci does not take package-lock.json: npm install')
  }
  await must(program, [...first, 'install', '--no-save', ...include], 'npm packages', help, options)
}

/** Installs them. Throws Missing. */
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
  for (const { path } of lack) say(`optional, and not to be had here: ${path.replace(/^.*node_modules\//, '')}`)
  writeFileSync(stamp, stampText())
}
