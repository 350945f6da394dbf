/** A network camera with a password, whose pictures are those of real footage: it can be killed, frozen and started anew. */
import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { isFree, root } from '../src/home.ts'

export async function freePort(): Promise<number> {
  for (;;) {
    const port = 10_000 + Math.floor(Math.random() * 10_000)
    if (await isFree(port)) return port
  }
}

export interface NetworkCamera {
  readonly address: string
  readonly username: string
  /** With this password. Resolves when it listens. */
  start(password: string): Promise<void>
  signal(signal: NodeJS.Signals): void
}

/** `folder`: where the footage is kept as the stream that the camera sends. */
export async function openNetworkCamera(folder: string): Promise<NetworkCamera> {
  const footage = join(folder, 'vtest.h264')
  const stream = ['-an', '-c:v', 'libx264', '-preset', 'veryfast', '-g', '20', '-bf', '0', '-pix_fmt', 'yuv420p', '-bsf:v', 'h264_metadata=aud=insert', '-f', 'h264', footage]
  await promisify(execFile)('ffmpeg', ['-v', 'error', '-y', '-i', join(root, '.frameloop/tools/footage/vtest.avi'), ...stream])
  const port = await freePort()
  let camera: ChildProcess | undefined
  return {
    address: `rtsp://127.0.0.1:${port}/gate`,
    username: 'viewer',
    async start(password) {
      const child = spawn('/usr/bin/python3', [join(root, 'deploy/e2e/footage/rtsp_camera.py'), String(port), `/gate=${footage}@10`, '--user', 'viewer', '--password', password], {
        stdio: ['ignore', 'pipe', 'inherit'],
      })
      camera = child
      await new Promise<void>((resolve, reject) => {
        child.stdout.on('data', (chunk: Buffer) => chunk.includes('frames') && resolve())
        child.once('exit', (code) => reject(new Error(`the camera ended with ${code}`)))
      })
      child.removeAllListeners('exit')
    },
    signal: (signal) => void camera?.kill(signal),
  }
}
