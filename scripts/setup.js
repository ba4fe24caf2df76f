#!/usr/bin/env node
// Makes a fresh machine ready: node scripts/setup.js [--test] [--link] [--npm-only] [--verbose]
// Installs the npm packages, QEMU >= 9 and builds the guest image; what is there already is left alone, so that the second time is quick and silent.
// Exit codes: 0 all is there; 2 something is missing that this could not install (it is named, with what to do). With --test Mosquitto comes
// too, for the tests that want a foreign MQTT broker, and (as with --link) iproute2, ping and iperf3 for links between network namespaces;
// what cannot be installed here at all (not root, not Debian) is then only named: the tests that need it are skipped and say so.
import {
  hasApt,
  installLinkTools,
  installMosquitto,
  installQemu,
  isGoodQemu,
  linkToolsReady,
  mayInstall,
  mosquittoReady,
  qemuVersion,
  system,
} from './setup/debian.js'
import { buildGuest, guestReady } from './setup/guest.js'
import { installNpm, npmReady } from './setup/npm.js'
import { alone, Missing, say, setVerbose, whisper } from './setup/tools.js'

const flags = new Set(process.argv.slice(2))
const unknown = [...flags].filter(flag => !['--test', '--link', '--npm-only', '--verbose'].includes(flag))
if (unknown.length > 0) {
  console.error(`setup: unknown option ${unknown.join(' ')}; known are --test, --link, --npm-only, --verbose`)
  process.exit(2)
}
setVerbose(flags.has('--verbose'))

const steps = [{ name: 'npm packages', ready: npmReady, work: installNpm }]
if (!flags.has('--npm-only')) {
  steps.push({ name: 'QEMU', ready: async () => isGoodQemu(await qemuVersion()), work: installQemu })
  steps.push({ name: 'guest image', ready: guestReady, work: buildGuest })
}
if (flags.has('--test') && !flags.has('--npm-only'))
  steps.push({ name: 'Mosquitto', ready: mosquittoReady, work: installMosquitto, optional: true })
if ((flags.has('--test') || flags.has('--link')) && !flags.has('--npm-only'))
  steps.push({ name: 'link tools', ready: linkToolsReady, work: installLinkTools, optional: flags.has('--test') })

/** Does one step; gives what is missing, or undefined. */
async function take({ name, ready, work }) {
  if (await ready()) return whisper(`${name}: there`)
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
    say(`optional, and not to be had here: ${lack.message}. ${lack.help}`)
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
  if (!mayInstall()) say(`this could not install it: ${hasApt() ? 'it does not run as root' : `${system().name} is not Debian`}`)
  const goOn = flags.has('--test') && !mayInstall() && (await npmReady())
  if (goOn) say('going on without; the tests that need it are skipped')
  process.exitCode = goOn ? 0 : 2
}
