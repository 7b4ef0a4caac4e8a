import { svelte } from "@sveltejs/vite-plugin-svelte";
import { defineConfig } from "vite";

// Names carry a hash of what is in them, so that browsers may keep assets for good; nothing is inlined, because the
// server's policy lets only files run.
export default defineConfig({
  plugins: [svelte()],
  build: { target: "es2020", assetsInlineLimit: 0, modulePreload: false, cssCodeSplit: false, reportCompressedSize: false },
});
