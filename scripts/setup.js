#!/usr/bin/env node
// Makes a fresh machine ready: node scripts/setup.js [--test] [--link] [--npm-only] [--debian-guest] [--verbose]
// Installs the npm packages and QEMU >= 9, and builds the guest image. It leaves alone what is there, so the second run
// is quick and silent. --test adds Mosquitto, for tests with a foreign MQTT broker; --test and --link add iproute2,
// ping, iperf3 and nftables, for links between network namespaces; --debian-guest builds a whole Debian 12 as a guest
// (root). Always holds: only root on Debian installs Debian packages (mayInstall), and the first line of output states
// which case this is; without root, nothing outside this folder changes. Exit codes: 0 all is there; 2 something is
// missing, and is named with what to do. With --test and without root the exit code is 0: the tests that need what is
// missing are skipped and report it.
import {
  hasApt,
  installLinkTools,
  installMosquitto,
  installQemu,
  linkToolsReady,
  mayInstall,
  mosquittoReady,
  qemuReady,
  system,
} from './setup/debian.js'
import { buildDebianGuest, debianGuestReady } from './setup/debian-guest.js'
import { buildGuest, guestReady } from './setup/guest.js'
import { installNpm, npmReady } from './setup/npm.js'
import { alone, Missing, say, setVerbose, whisper } from './setup/tools.js'

const flags = new Set(process.argv.slice(2))
const known = ['--test', '--link', '--npm-only', '--debian-guest', '--verbose']
const unknown = [...flags].filter(flag => !known.includes(flag))
if (unknown.length > 0) {
  console.error(`setup: unknown option ${unknown.join(' ')}; known are ${known.join(', ')}`)
  process.exit(2)
}
setVerbose(flags.has('--verbose'))

const steps = [{ name: 'npm packages', ready: npmReady, work: installNpm }]
if (!flags.has('--npm-only')) {
  steps.push({ name: 'QEMU', ready: qemuReady, work: installQemu })
  steps.push({ name: 'guest image', ready: guestReady, work: buildGuest })
}
if (flags.has('--test') && !flags.has('--npm-only'))
  steps.push({ name: 'Mosquitto', ready: mosquittoReady, work: installMosquitto, optional: true })
if ((flags.has('--test') || flags.has('--link')) && !flags.has('--npm-only'))
  steps.push({ name: 'link tools', ready: linkToolsReady, work: installLinkTools, optional: flags.has('--test') })

if (flags.has('--debian-guest') && !flags.has('--npm-only'))
  steps.push({ name: 'Debian guest', ready: debianGuestReady, work: buildDebianGuest, optional: flags.has('--test') })

/** Whether this run may change the system, before it changes anything; once, and only where something is missing. */
let isAnnounced = flags.has('--npm-only')
function announce() {
  if (isAnnounced) return
  isAnnounced = true
  if (mayInstall()) say('running as root on Debian: missing Debian packages are installed with apt-get')
  else say('no Debian package is installed, because this does not run as root on Debian')
}

/** Does one step. Returns what is missing, or undefined. */
async function take({ name, ready, work }) {
  if (await ready()) return whisper(`${name}: present`)
  announce()
  try {
    await alone(work)
    whisper(`${name}: done`)
  } catch (error) {
    if (error instanceof Missing) return error
    throw error
  }
  return undefined
}

const started = Date.now()
const missing = []
for (const step of steps) {
  const lack = await take(step)
  if (lack && step.optional) {
    say(`optional, not available here: ${lack.message}. ${lack.help}`)
    continue
  }
  if (lack) missing.push(lack)
  // Without the packages nothing else can run.
  if (lack && step.name === 'npm packages') break
}
const tookSeconds = Math.round((Date.now() - started) / 1000)
if (missing.length === 0) {
  if (tookSeconds > 1) say(`ready (${tookSeconds} s)`)
} else {
  for (const { message, help } of missing) say(`missing: ${message}\n${help.replace(/^/gm, '         ')}`)
  if (!mayInstall())
    say(
      hasApt()
        ? 'run this as root to install what is missing with apt-get, or install it as described above'
        : `${system().name} is not Debian: install what is missing as described above, then run this again`,
    )
  const goOn = flags.has('--test') && !mayInstall() && (await npmReady())
  if (goOn) say('continuing; the tests that need it are skipped')
  process.exitCode = goOn ? 0 : 2
}
