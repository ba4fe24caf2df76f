// Debian packages through apt's own configured sources. Enters: the state of dpkg and apt. Leaves: packages installed,
// or unpacked into a folder. Always holds: only root on Debian installs (mayInstall); no mirror is named here:
// bookworm-backports comes from the mirror that this machine uses for bookworm, with the same keys; a source list that
// does not work is removed again. It installs QEMU, a C compiler if there is none, and for the tests Mosquitto and
// tools that lay and measure links. It starts no service.
import { existsSync, mkdirSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { attempt, findProgram, Missing, must, readText, say, tailOf, whisper } from './tools.js'

const listFile = '/etc/apt/sources.list.d/godwit-backports.list'
const keyFile = '/etc/apt/keyrings/godwit-backports.asc'
const BACKPORTS = 'bookworm-backports'
const QEMU_MAJOR_MIN = 9
const LOCK_WAIT_MS = 10 * 60_000
/** First options of every apt-get call: apt itself waits for dpkg's lock; this file waits for the lock of the lists. */
const APT_OPTIONS = ['-q', '-o', 'DPkg::Lock::Timeout=600', '-o', 'Acquire::Retries=3']
const aptEnv = { DEBIAN_FRONTEND: 'noninteractive', APT_LISTCHANGES_FRONTEND: 'none', NEEDRESTART_MODE: 'l' }

const qemuProgram = process.arch === 'arm64' ? 'qemu-system-aarch64' : 'qemu-system-x86_64'
const qemuPackages = [process.arch === 'arm64' ? 'qemu-system-arm' : 'qemu-system-x86', 'qemu-utils', 'xorriso', 'ovmf']
/** Programs of qemu-utils that convert and serve images, and xorriso, which makes the seeds of cloud-init. */
const QEMU_TOOLS = ['qemu-img', 'qemu-nbd', 'xorriso']

/** { id, codename, major } of this system, from os-release. */
export function system() {
  const text = readText('/etc/os-release')
  const field = name => new RegExp(`^${name}="?([^"\n]*)"?$`, 'm').exec(text)?.[1] ?? ''
  return {
    id: field('ID'),
    codename: field('VERSION_CODENAME'),
    major: Number(field('VERSION_ID')) || 0,
    name: field('PRETTY_NAME') || process.platform,
  }
}

export const hasApt = () => system().id === 'debian' && findProgram('apt-get') !== undefined
export const mayInstall = () => hasApt() && process.getuid?.() === 0

/** Version of the QEMU on PATH, like '10.0.2'; undefined if there is none. */
async function qemuVersion() {
  if (!findProgram(qemuProgram)) return undefined
  const { output } = await attempt(qemuProgram, ['--version'], { timeoutMs: 20_000 })
  return /version (\d+\.\d+\.\d+)/.exec(output)?.[1]
}

const isGoodQemu = version => version !== undefined && Number.parseInt(version, 10) >= QEMU_MAJOR_MIN

/** Whether QEMU and its image tools are installed and new enough. */
export const qemuReady = async () => isGoodQemu(await qemuVersion()) && QEMU_TOOLS.every(name => findProgram(name) !== undefined)

async function aptGet(args, what, help) {
  const end = Date.now() + LOCK_WAIT_MS
  for (let told = false; ; told = true) {
    const { code, output } = await attempt('apt-get', [...APT_OPTIONS, ...args], { env: aptEnv })
    if (code === 0) return output
    if (!/Could not get lock|Unable to lock/.test(output) || Date.now() > end) {
      throw new Missing(what, `'apt-get ${args[0]}' failed (exit code ${code}):\n${tailOf(output)}\n${help}`)
    }
    if (!told) say('another process uses apt: waiting for it')
    await new Promise(resolve => setTimeout(resolve, 3000))
  }
}

const updateHelp = "Check apt's sources and the network ('apt-get update' must work), then run this again."
let updated = false
/** A source that is not needed may fail: the installation of a package shows whether it matters. */
async function update(force = false) {
  if (updated && !force) return
  say("reading apt's package lists")
  updated = true
  try {
    await aptGet(['update'], "apt's package lists", updateHelp)
  } catch (error) {
    if (!(error instanceof Missing)) throw error
    say("'apt-get update' reports errors (see .cache/setup.log); continuing with the present lists")
  }
}

/** The index targets for main packages that apt is configured for: [{ site, release, entry }]. */
async function sources() {
  const format = '$(REPO_URI)|$(RELEASE)|$(CODENAME)|$(COMPONENT)|$(CREATED_BY)|$(SOURCESENTRY)'
  const { output } = await attempt('apt-get', ['indextargets', '--format', format])
  return output
    .split('\n')
    .map(line => line.split('|'))
    .filter(([site, , , component, created]) => component === 'main' && created === 'Packages' && !/^cdrom:/.test(site))
    .map(([site, release, codename, , , entry]) => ({ site, release, codename, entry }))
}

/**
 * The key of a configured source: a path, a whole key block, or undefined. `entry` is apt's 'file:number'. Understands
 * one-line lists and deb822 stanzas.
 */
export function signedBy(text, site) {
  const withoutSlash = site.replace(/\/$/, '')
  const oneLine = text.split('\n').find(line => /^\s*deb\s/.test(line) && line.includes(withoutSlash))
  if (oneLine) return /\[[^\]]*signed-by=([^\s\]]+)/.exec(oneLine)?.[1]
  const stanza = text.split(/\n\s*\n/).find(part => /^URIs:/im.test(part) && part.includes(withoutSlash)) ?? ''
  const value = /^Signed-By:[ \t]*((?:.*)(?:\n[ \t].*)*)/im.exec(stanza.replace(/^#.*\n/gm, ''))?.[1]
  if (value === undefined) return undefined
  if (!value.includes('BEGIN PGP')) return value.trim() || undefined
  // In deb822 a line of the key block is indented, and an empty one is a dot.
  const lines = value.split('\n').map(line => line.trim())
  return `${lines
    .filter((line, i) => i > 0 || line !== '')
    .map(line => (line === '.' ? '' : line))
    .join('\n')}\n`
}

/** Throws Missing. */
function bookwormIn(known) {
  const base = known.find(({ release, codename }) => release === 'bookworm' || codename === 'bookworm')
  if (!base) throw new Missing('a source of Debian packages', "apt has no source for 'bookworm main'. Configure one, then run this again.")
  return base
}

function keyOf(base) {
  const key = signedBy(readText(base.entry.replace(/:\d+$/, '')), base.site)
  return { key, isBlock: key?.includes('BEGIN PGP') ?? false }
}

/**
 * The line of sources.list for bookworm, with the mirror and the key of this machine. A key block goes to `blockFile`.
 * Throws Missing.
 */
export async function bookwormLine(blockFile) {
  const base = bookwormIn(await sources())
  const { key, isBlock } = keyOf(base)
  if (isBlock) writeFileSync(blockFile, key)
  const option = key ? `[signed-by=${isBlock ? blockFile : key}] ` : ''
  return `deb ${option}${base.site} bookworm main`
}

/** Adds bookworm-backports to apt, from the mirror of bookworm. Returns the function that removes it. */
async function addBackports() {
  let known = await sources()
  if (known.length === 0) {
    await update()
    known = await sources()
  }
  if (known.some(({ release, codename }) => release === BACKPORTS || codename === BACKPORTS)) {
    await update()
    return () => {}
  }
  const base = bookwormIn(known)
  const { key, isBlock } = keyOf(base)
  if (isBlock) {
    mkdirSync(dirname(keyFile), { recursive: true })
    writeFileSync(keyFile, key)
  }
  say(`adding ${BACKPORTS} to apt's sources (${listFile})`)
  const option = key ? `[signed-by=${isBlock ? keyFile : key}] ` : ''
  writeFileSync(
    listFile,
    `# Written by Godwit's setup for QEMU ${QEMU_MAJOR_MIN} or newer; may be removed.\ndeb ${option}${base.site} ${BACKPORTS} main\n`,
  )
  await update(true)
  return () => {
    rmSync(listFile, { force: true })
    if (isBlock) rmSync(keyFile, { force: true })
  }
}

const qemuHelp =
  `On Debian 12: install ${qemuPackages.join(' and ')} from ${BACKPORTS} (as root: add that suite to apt's sources, then ` +
  `apt-get install -t ${BACKPORTS} ${qemuPackages.join(' ')}). On other systems: install QEMU ${QEMU_MAJOR_MIN} or newer with ` +
  `${[qemuProgram, ...QEMU_TOOLS].join(', ')}.`

/** QEMU 9 or newer; installs it if possible. Throws Missing. */
export async function installQemu() {
  const version = await qemuVersion()
  if (await qemuReady()) return
  const what = `QEMU ${QEMU_MAJOR_MIN} or newer (${qemuProgram}; found: ${version ?? 'none'}) with ${QEMU_TOOLS.join(' and ')}`
  const { codename, major } = system()
  if (!mayInstall()) throw new Missing(what, qemuHelp)
  if (major !== 0 && major < 12) throw new Missing(what, qemuHelp)
  let undo = () => {}
  if (codename === 'bookworm') undo = await addBackports()
  else await update()
  say(`installing ${qemuPackages.join(', ')} (a minute or so)`)
  const suite = codename === 'bookworm' ? ['-t', BACKPORTS] : []
  try {
    await aptGet(['install', '-y', '--no-install-recommends', ...suite, ...qemuPackages], what, `${updateHelp}\n${qemuHelp}`)
  } catch (error) {
    undo()
    throw error
  }
  const now = await qemuVersion()
  if (!(await qemuReady())) throw new Missing(`${what}; after the installation: ${now ?? 'none'}`, qemuHelp)
  say(`QEMU ${now} is installed`)
}

/** The library that the Node of the npm package needs. Throws Missing. */
export async function installLibatomic() {
  const help = 'Install it (Debian: apt-get install libatomic1), or use a Node 24 or newer that runs here.'
  if (!mayInstall()) throw new Missing('the library libatomic.so.1', help)
  await update()
  say('installing libatomic1')
  await aptGet(['install', '-y', '--no-install-recommends', 'libatomic1'], 'the library libatomic.so.1', help)
}

const policyFile = '/usr/sbin/policy-rc.d'

/** Packages whose services must start neither now nor at boot. Throws Missing. */
async function installAsleep(packages, services, what, help) {
  if (!mayInstall()) throw new Missing(what, help)
  await update()
  say(`installing ${packages.join(', ')}`)
  // Debian starts an installed service unless this file forbids it; an existing file is kept.
  const mayStay = existsSync(policyFile)
  if (!mayStay) writeFileSync(policyFile, '#!/bin/sh\nexit 101\n', { mode: 0o755 })
  try {
    await aptGet(['install', '-y', '--no-install-recommends', ...packages], what, help)
  } finally {
    if (!mayStay) rmSync(policyFile, { force: true })
  }
  if (!mayStay && findProgram('systemctl'))
    for (const service of services) await attempt('systemctl', ['disable', service], { timeoutMs: 30_000 })
}

const isThere = name => (findProgram(name) ?? findProgram(`/usr/sbin/${name}`) ?? findProgram(`/sbin/${name}`)) !== undefined
const MOSQUITTO = ['mosquitto', 'mosquitto_passwd', 'mosquitto_pub', 'mosquitto_sub']

/** Whether the MQTT broker and its clients are installed, for tests with an external broker. */
export const mosquittoReady = () => MOSQUITTO.every(isThere)

/** Debian's Mosquitto, not started: the tests start their own. Throws Missing. */
export async function installMosquitto() {
  const help = 'Install it (Debian: apt-get install mosquitto mosquitto-clients). Only tests need it.'
  await installAsleep(['mosquitto', 'mosquitto-clients'], ['mosquitto.service'], 'the MQTT broker Mosquitto', help)
}

const LINK_TOOLS = { ip: 'iproute2', ping: 'iputils-ping', iperf3: 'iperf3', nft: 'nftables' }

/**
 * Whether links between network namespaces can be created, measured and filtered: for bench:wan, tests of the
 * packet-level link and of network filters.
 */
export const linkToolsReady = () => Object.keys(LINK_TOOLS).every(isThere)

/** iproute2, and programs that measure a link. Throws Missing. */
export async function installLinkTools() {
  const names = Object.keys(LINK_TOOLS).filter(name => !isThere(name))
  const packages = names.map(name => LINK_TOOLS[name])
  const help = `Install them (Debian: apt-get install ${packages.join(' ')}). Only bench:wan and tests of links need them.`
  await installAsleep(packages, ['iperf3.service'], `the programs ${names.join(', ')}`, help)
}

const IMAGE_TOOLS = { mmdebstrap: 'mmdebstrap', mke2fs: 'e2fsprogs' }

/** Programs that build a Debian system in a file. Throws Missing. */
export async function installImageTools() {
  const names = Object.keys(IMAGE_TOOLS).filter(name => !isThere(name))
  if (names.length === 0) return
  const packages = names.map(name => IMAGE_TOOLS[name])
  const help = `Install them (Debian: apt-get install ${packages.join(' ')}). Only the Debian guest needs them.`
  await update()
  say(`installing ${packages.join(', ')}`)
  await aptGet(['install', '-y', '--no-install-recommends', ...packages], `the programs ${names.join(' and ')}`, help)
}

/** Name of a C compiler; installs one if there is none. Throws Missing. */
export async function installCompiler() {
  const found = [process.env.CC, 'cc', 'gcc', 'clang'].find(name => name && findProgram(name))
  if (found) return found
  const help = 'Install gcc (Debian: apt-get install gcc), or set CC to a C compiler. It is needed once, to build the guest program.'
  if (!mayInstall()) throw new Missing('a C compiler', help)
  await update()
  say('installing gcc')
  await aptGet(['install', '-y', '--no-install-recommends', 'gcc'], 'a C compiler', help)
  return 'gcc'
}

/** Downloads packages (no root needed) and unpacks them into `folder`; installs nothing. Throws Missing. */
export async function unpackPackages(names, folder) {
  const what = `the Debian packages ${names.join(' and ')}`
  const help = `${updateHelp} They are only unpacked, not installed.`
  const download = () => attempt('apt-get', [...APT_OPTIONS, 'download', ...names], { cwd: folder, env: aptEnv })
  mkdirSync(folder, { recursive: true })
  let result = await download()
  if (result.code !== 0 && mayInstall()) {
    await update(true)
    result = await download()
  }
  const files = readdirSync(folder).filter(name => name.endsWith('.deb'))
  if (result.code !== 0 || files.length < names.length) {
    throw new Missing(what, `'apt-get download' failed:\n${tailOf(result.output)}\n${help}`)
  }
  for (const file of files) {
    await must('dpkg-deb', ['-x', join(folder, file), folder], what, help)
    rmSync(join(folder, file))
  }
}

/** The current package of a meta package (linux-image-cloud-amd64), or undefined if apt does not know it. */
export async function kernelPackage(meta) {
  const look = async () => {
    const { output } = await attempt('apt-cache', ['show', '--no-all-versions', meta])
    return /^Depends:.*?\b(linux-image-[^\s,(]+)/m.exec(output)?.[1]
  }
  const known = await look()
  if (known || !mayInstall()) return known
  whisper(`apt does not know ${meta} yet`)
  await update()
  return look()
}
